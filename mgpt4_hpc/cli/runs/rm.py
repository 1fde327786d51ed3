"""``mgpt4 rm``: delete run directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.formatting import counted, printable, size_text
from mgpt4_hpc.run_dir import RunDir, list_runs

if TYPE_CHECKING:
    from mgpt4_hpc.launch.manage.remove import Removal

_NO_STEP = "give the run to delete all of it; `checkpoint.keep_last` decides which steps stay"


@click.command("rm", short_help="Delete runs that are over.")
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_runs)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@runs_dir_option
@json_option
def rm_command(
    names: tuple[str, ...], yes: bool, dry_run: bool, runs_dir: Path, as_json: bool
) -> None:
    """Delete run directories, checkpoints included. Asks first, with the size of what would go.

    A run that runs or waits is never deleted, nor is one whose state is unknown because Slurm does
    not answer; in these cases no run is deleted. Links inside the folder are removed, not followed.
    A sweep's name stands for all of its runs.

    \b
    mgpt4 rm stage1-vicuna7b --dry-run
    mgpt4 rm first-try second-try --yes
    """
    from mgpt4_hpc.launch.manage.remove import plan_removal, remove_run
    from mgpt4_hpc.launch.runs.status import look_at
    from mgpt4_hpc.launch.runs.sweep_dir import find_runs, remove_empty_sweeps

    runs_dir = absolute(runs_dir)
    # Twice the same run, by name and by path, is one run.
    runs = list({run.path: run for run in find_runs(names, runs_dir, no_step=_NO_STEP)}.values())
    others = [run for run in list_runs(runs_dir) if run not in runs]
    seen = look_at(runs)  # Slurm is asked about these alone
    if seen.unreachable is not None:
        raise seen.unreachable
    plans = plan_removal(runs, seen.rows, others)
    deleted: list[RunDir] = []
    _print_plans(plans)
    if not dry_run:
        if not yes:
            question = f"Delete {'this run' if len(plans) == 1 else f'these {len(plans)} runs'}?"
            click.confirm(question, abort=True, err=True)
        for plan in plans:
            remove_run(plan)
            deleted.append(plan.run)
        remove_empty_sweeps(runs_dir)
    if as_json:
        removed = {run.path for run in deleted}
        echo_json(
            [
                {
                    "run": plan.run.name,
                    "path": str(plan.run.path),
                    "removed": plan.run.path in removed,
                    "files": plan.files,
                    "bytes": plan.bytes,
                    "needed_by": plan.needed_by,
                }
                for plan in plans
            ]
        )
        return
    for plan in plans:
        click.echo(printable(f"{plan.run.name}: {'would be removed' if dry_run else 'removed'}"))


def _print_plans(plans: Sequence[Removal]) -> None:
    """What would go of each run, on stderr."""
    for plan in plans:
        step = f"{plan.step}/{plan.max_steps if plan.max_steps is not None else '?'}"
        what = (
            f"{plan.run.path}: {plan.text}; step {step}, "
            f"{counted(plan.checkpoints, 'checkpoint')}, {counted(plan.files, 'file')}, "
            f"{size_text(plan.bytes)}"
        )
        click.echo(printable(what), err=True)
        for name in plan.needed_by:
            click.echo(printable(f"warning: {name} starts from its checkpoint"), err=True)
