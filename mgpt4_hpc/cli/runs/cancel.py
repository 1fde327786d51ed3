"""``mgpt4 cancel``: take runs out of the queue."""

from __future__ import annotations

from pathlib import Path

import click

from mgpt4_hpc.cli.main import echo_json, raise_all
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.errors import MgptError, SlurmUnreachable
from mgpt4_hpc.formatting import printable


@click.command("cancel", short_help="Cancel a run's job.")
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_runs)
@click.option("--save", is_flag=True, help="Let it save first, however long that takes.")
@runs_dir_option
@json_option
def cancel_command(names: tuple[str, ...], save: bool, runs_dir: Path, as_json: bool) -> None:
    """Cancel the jobs of runs. Nothing is deleted; `mgpt4 resume` continues a cancelled run.

    A sweep's name stands for all of its runs.

    Without --save Slurm's scancel is used as it is: the ranks still try to save, but Slurm kills
    them after its KillWait (30 seconds on most sites). A local run always saves first.

    \b
    mgpt4 cancel stage1-vicuna7b --save
    """
    from mgpt4_hpc.launch.manage.cancel import cancel_run
    from mgpt4_hpc.launch.runs.status import look_at
    from mgpt4_hpc.launch.runs.sweep_dir import find_runs

    runs = find_runs(names, absolute(runs_dir))
    seen = look_at(runs)
    if seen.unreachable is not None:
        raise SlurmUnreachable(
            f"nothing was cancelled: {seen.unreachable.what}",
            why=seen.unreachable.why or "only Slurm knows which of the jobs can be cancelled",
            fix=seen.unreachable.fix or "once Slurm answers, give the same command again",
        )
    done = []
    errors: list[MgptError] = []
    for run, row in zip(runs, seen.rows, strict=True):
        try:
            done.append(cancel_run(run, row, save=save))
        except MgptError as error:
            # One that cannot be cancelled must not keep the others running.
            errors.append(error)
    if as_json:
        echo_json(
            [
                {
                    "run": cancellation.run.name,
                    "job_id": cancellation.job_id,
                    "done": cancellation.done,
                    "text": cancellation.text,
                }
                for cancellation in done
            ]
        )
    else:
        for cancellation in done:
            click.echo(printable(f"{cancellation.run.name}: {cancellation.text}"))
    raise_all(errors)
