"""``mgpt4 usage``: what the GPU-hours of runs went into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import printable
from mgpt4_hpc.launch.runs.sweep_dir import find_runs
from mgpt4_hpc.run_dir import FIX_NO_RUNS, RunDir, list_runs, told_no_runs
from mgpt4_hpc.telemetry.usage import PURPOSES, USEFUL, Usage, read_usage


@click.command("usage", short_help="GPU-hours of runs: useful, replayed, waiting, and so on.")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=complete_runs)
@runs_dir_option
@json_option
def usage_command(names: tuple[str, ...], runs_dir: Path, as_json: bool) -> None:
    """What the GPU-hours of runs went into: those named, or all of the folder.

    Useful are steps done for the first time; replayed ones had been done already and were lost.
    Goodput is the useful part of the time that a run held its GPUs, and then of all the time since
    its submission, the waits in the queue included. Time in which Slurm had suspended the job is no
    GPU time. An attempt that was killed counts up to its last sign of life.

    \b
    mgpt4 usage stage1-vicuna7b
    mgpt4 usage stage1-vicuna7b stage2-vicuna7b --json
    """
    runs_dir = absolute(runs_dir)
    runs = find_runs(names, runs_dir) if names else _readable(list_runs(runs_dir))
    for run in runs:
        run.identity()
    usages, total = read_usage(runs)
    if as_json:
        echo_json({"runs": [_plain(usage) for usage in usages], "total": _plain(total)})
    elif not runs:
        click.echo(f"{told_no_runs(runs_dir)}\n  fix: {FIX_NO_RUNS}", err=True)
    else:
        _print([*usages, total] if len(usages) > 1 else usages)


def _readable(runs: Sequence[RunDir]) -> list[RunDir]:
    """Those that this version can read; of a folder's runs one must not hide the others."""
    kept = []
    for run in runs:
        try:
            run.identity()
        except MgptError as error:
            click.echo(printable(f"warning: left out: {error.what}"), err=True)
        else:
            kept.append(run)
    return kept


def _plain(usage: Usage) -> dict[str, Any]:
    return {**asdict(usage), "total_gpu_hours": usage.total_gpu_hours}


def _print(rows: Sequence[Usage]) -> None:
    hours_of = _hours_of(rows)
    suspended = any(row.suspended_h for row in rows)
    columns = ("run", ">attempts", f">{hours_of}", ">useful", ">queue",
               *[">suspended"] * suspended, ">goodput", ">with queue")  # fmt: skip
    cells = [
        (
            row.name + (" (running)" if row.running else ""),
            f"{row.num_attempts}, {row.num_killed} killed" if row.num_killed else row.num_attempts,
            _number(row.total_gpu_hours),
            _number(row.gpu_hours[USEFUL]),
            f"{_number(row.queue_wait_h)} h",
            *[f"{_number(row.suspended_h)} h"] * suspended,
            f"{row.goodput:.1%}",
            f"{row.goodput_with_queue:.1%}",
        )
        for row in rows
    ]
    print_rows(columns, cells, folding=("with queue",))
    click.echo()
    _print_split(rows, hours_of)


def _print_split(rows: Sequence[Usage], hours_of: str) -> None:
    """A line for each run, so that many of them make the table longer and not wider."""
    whole = rows[-1]  # the total where there is one
    # A purpose that took nothing would be a column of zeros.
    shown = [name for name in PURPOSES if name == USEFUL or whole.gpu_hours[name]]
    headings = [name.replace("_", " ") for name in shown]
    cells = [(row.name, *(_number(row.gpu_hours[name]) for name in shown)) for row in rows]
    total = whole.total_gpu_hours
    shares = (f"{whole.gpu_hours[name] / total if total else 0.0:.1%}" for name in shown)
    columns = (hours_of, *(f">{name}" for name in headings))
    print_rows(columns, [*cells, ("share", *shares)], folding=headings)


def _hours_of(rows: Sequence[Usage]) -> str:
    """What was counted: a run on CPUs holds no GPU."""
    kinds = {row.on_cpus for row in rows if row.num_attempts and row.path}
    return {frozenset({True}): "process-hours", frozenset({True, False}): "device-hours"}.get(
        frozenset(kinds), "GPU-hours"
    )


def _number(hours: float) -> str:
    """Two places from a tenth of an hour on, four for short runs."""
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.4f}"
