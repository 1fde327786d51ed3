"""``mgpt4 drill``: the proof that this site works, by a run that is preempted and comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.bars import bars
from mgpt4_hpc.cli.shared.options import (
    DurationMin,
    Number,
    absolute,
    executor_option,
    json_option,
    runs_dir_option,
    set_option,
)
from mgpt4_hpc.errors import MgptError

if TYPE_CHECKING:
    from mgpt4_hpc.launch.site_check.drill import DrillResult


@click.command("drill", short_help="Prove that a preempted run comes back here, bit by bit.")
@click.option("-p", "--partition", help="Where the run is tried; otherwise the site's default.")
@click.option("--account", help="Slurm account.")
@click.option("--qos", help="Slurm quality of service.")
@click.option(
    "--gpus", type=click.IntRange(1, 16), default=1, show_default=True, help="Ranks of the run."
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Nodes to spread them over; whole ones are asked for.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="cpu asks Slurm for no GPU.",
)
@click.option(
    "--by",
    type=click.Choice(["auto", "preemption", "requeue"]),
    default="auto",
    show_default=True,
    help="auto preempts where you may, and requeues elsewhere.",
)
@click.option("--steps", type=click.IntRange(min=20), help="Steps of the run.")
@click.option(
    "--time", "time_min", type=DurationMin(), default=15, help="Time limit of each job; 15 minutes."
)
@click.option(
    "--patience",
    "patience_min",
    type=Number(min=0.1),
    default=15.0,
    show_default=True,
    help="Minutes to wait for each thing: the start, the stop, the return, the end.",
)
@set_option("Any setting, as launch.modules='[cuda]'; repeat for more.")
@click.option(
    "--sbatch",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any further sbatch option; repeat for more.",
)
@click.option("--site", help="Site profile.")
@executor_option
@click.option("--keep", is_flag=True, help="Leave the two runs behind, also if all went well.")
@runs_dir_option
@json_option
def drill_command(patience_min: float, runs_dir: Path, as_json: bool, **asked: Any) -> None:
    """Prove that a preempted run comes back here, bit by bit.

    Submits a toy run of a minute, takes its nodes away (with a job that may preempt it, or by
    `scontrol requeue`), waits for it to come back, and compares its end with that of the same run
    left alone, which waits for the first as stage 2 waits for stage 1. Green means that preemption,
    requeueing, chains, the shared folder and the resume work on this site. Ctrl-C cancels its jobs;
    the runs are removed unless something is wrong with them.

    \b
    mgpt4 drill --partition a100-preempt
    mgpt4 drill --partition cpu --device cpu --by requeue --steps 100
    mgpt4 drill --executor local --device cpu --steps 100
    """
    from mgpt4_hpc.launch.site_check.drill import DrillOrder, run_drill
    from mgpt4_hpc.launch.site_check.run_watcher import DrillFailed

    order = DrillOrder(runs_dir=absolute(runs_dir), patience_s=60 * patience_min, **asked)
    try:
        with bars() as reporter, _ended_like_interrupted():
            result = run_drill(order, reporter)
    except DrillFailed as error:
        if as_json:
            failure = {"what": error.what, "why": error.why, "fix": error.fix}
            echo_json({"ok": False, "faults": [error.what], "error": failure})
        raise
    if as_json:
        echo_json({"ok": not result.faults, **asdict(result)})
    else:
        _show(result)
    if result.faults:
        raise MgptError(
            "the drill did not go well: " + "; ".join(result.faults),
            fix=f"look at the runs: mgpt4 history {result.runs[0]}; mgpt4 doctor names the "
            "site's settings",
        )


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """A TERM, too, must end the jobs first."""

    def interrupt(*_: object) -> None:
        """Handle the signal as Python handles an INT."""
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(result: DrillResult) -> None:
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(f"its nodes were taken by {result.how}")
    click.echo(
        f"stopped at step {result.stopped_at} after {result.stop_s:.1f} s, back after "
        f"{result.wait_s:.0f} s, first step {result.start_s:.0f} s later, from step "
        f"{result.resumed_from}"
    )
    if result.follow_s is not None:
        click.echo(f"what waited for it began {result.follow_s:.0f} s after its end")
    if not result.faults:
        click.echo(
            f"drill ok: {' then '.join(result.causes)}, no step lost, every bit as in the run left "
            f"alone; {result.seconds:.0f} s"
        )
