"""``mgpt4 resume``: submit an unfinished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.options import DurationMin, absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.run_dir import find_run


@click.command("resume", short_help="Submit an unfinished run again.")
@click.argument("name", metavar="RUN", shell_complete=complete_runs)
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of the whole job.")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes to spread the GPUs over.")
@click.option("--time", "time_min", type=DurationMin(), help="Time limit of one attempt.")
@click.option("--partition", help="Slurm partition.")
@click.option("--account", help="Slurm account.")
@click.option("--qos", help="Slurm quality of service.")
@click.option("--constraint", help="Node features.")
@click.option("--exclude", help="Nodes to keep away from.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting that does not decide the result, as launch.max_crashes=9.",
)
@click.option(
    "--executor",
    type=click.Choice(["auto", "slurm", "local"]),
    help="Default: what the run used before.",
)
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Go on though settings, data, weights or library versions changed; the ledger tells.",
)
@click.option("--wait", is_flag=True, help="Stay until the run has finished.")
@runs_dir_option
@json_option
def resume_command(
    name: str,
    assignments: tuple[str, ...],
    executor: str | None,
    accept_drift: bool,
    wait: bool,
    runs_dir: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Submit an unfinished run again; it goes on from its last checkpoint.

    Any number of GPUs will do: the samples and their order stay the same. Settings that decide the
    result cannot change.

    \b
    mgpt4 resume stage1-vicuna7b --gpus 2 --time 12:00:00
    """
    from mgpt4_hpc.config.load import parse_assignments
    from mgpt4_hpc.launch.resume import resume_run

    def say(text: str) -> None:
        click.echo(text, err=True)

    run = find_run(name, absolute(runs_dir))
    overrides = parse_assignments(assignments)
    overrides |= {f"launch.{key}": value for key, value in asked.items() if value is not None}
    done = resume_run(run, overrides, executor, say=say, accept=accept_drift)
    job = done.submitted
    if as_json:
        echo_json(
            {
                "run": run.name,
                "run_dir": str(run.path),
                "finished": done.finished,
                "job_id": job.job_id if job else None,
                "executor": job.executor if job else None,
                "changes": {key: {"old": a, "new": b} for key, (a, b) in done.changes.items()},
            }
        )
    elif job is None:
        click.echo(f"{run.name} is finished already: nothing to resume")
    else:
        click.echo(f"{run.name}  {job.executor} job {job.job_id}  {run.path}")
    if wait and job is not None:
        from mgpt4_hpc.launch.watch import wait_for_runs

        wait_for_runs([run], say=say)
