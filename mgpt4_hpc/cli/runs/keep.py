"""``mgpt4 keep``: bring back runs that should be at work and are not."""

from __future__ import annotations

from pathlib import Path

import click

from mgpt4_hpc.cli.main import echo_json, raise_all
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.formatting import printable


@click.command("keep", short_help="Bring back runs that should be at work and are not.")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=complete_runs)
@runs_dir_option
@json_option
def keep_command(names: tuple[str, ...], runs_dir: Path, as_json: bool) -> None:
    """Submit each run again whose job is gone without having been ended; default: all runs.

    Made for cron and scrontab: it prints nothing where there is nothing to do. It leaves alone what
    is finished, cancelled, given up, waiting or running, and runs without a Slurm job; unless they
    are named, also those of another cluster that cannot be asked from here. The new job continues
    the budgets of the last one, unlike that of `mgpt4 resume`, so a broken run ends.

    \b
    mgpt4 keep
    mgpt4 keep first-try stage1-vicuna7b
    """
    from mgpt4_hpc.launch.manage.keep import keep_runs
    from mgpt4_hpc.launch.runs.sweep_dir import chosen_runs

    runs = chosen_runs(names, absolute(runs_dir))
    kept = keep_runs(
        runs, say=lambda text: click.echo(printable(text), err=True), named=bool(names)
    )
    lines = [
        {
            "run": resumption.run.name,
            "run_dir": str(resumption.run.path),
            "job_id": resumption.submitted.job_id,
            "was": kept.was[resumption.run.name],
        }
        for resumption in kept.brought_back
        if resumption.submitted is not None
    ]
    if as_json:
        echo_json(lines)
    else:
        for row in lines:
            click.echo(printable(f"{row['run']}  job {row['job_id']}  (it was {row['was']})"))
    raise_all(kept.errors)
