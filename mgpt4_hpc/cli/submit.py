"""``mgpt4 submit``: preflight, run directory, job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.options import DurationMin, absolute, json_option, runs_dir_option


@click.command("submit", short_help="Submit a stage, or both, to Slurm or to this machine.")
@click.option("--stage", type=click.Choice(["1", "2", "both"]), help="Which stage to train.")
@click.option(
    "--config",
    "config_names",
    multiple=True,
    metavar="PRESET|FILE",
    help="Settings. With --stage both, give it twice: stage 1's, then stage 2's.",
)
@click.option("--name", help="Name of the run and its folder.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    help="GPUs of the whole job, one task each; with --stage both of stage 1's.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    help="Nodes to spread the GPUs over; with --stage both stage 1's.",
)
@click.option("--time", "time_min", type=DurationMin(), help="Time limit of one attempt.")
@click.option("--partition", help="Slurm partition.")
@click.option("--account", help="Slurm account.")
@click.option("--qos", help="Slurm quality of service.")
@click.option("--constraint", help="Node features.")
@click.option("--exclude", help="Nodes to keep away from.")
@click.option(
    "--after",
    "after_name",
    metavar="RUN",
    help="Start when that run has finished, from its projector.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting, as lr=1e-4; repeat for more.",
)
@click.option(
    "--sbatch",
    "sbatch_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any further sbatch option; repeat for more.",
)
@click.option("--site", envvar="MGPT4_SITE", help="Site profile.")
@click.option(
    "--executor",
    type=click.Choice(["auto", "slurm", "local"]),
    default="auto",
    show_default=True,
    help="auto is Slurm where sbatch is installed.",
)
@click.option("--dry-run", is_flag=True, help="Print the batch script; write and submit nothing.")
@click.option("--wait", is_flag=True, help="Stay until the run has finished.")
@runs_dir_option
@json_option
def submit_command(
    stage: str | None,
    config_names: tuple[str, ...],
    name: str | None,
    after_name: str | None,
    assignments: tuple[str, ...],
    sbatch_options: tuple[str, ...],
    site: str | None,
    executor: str,
    dry_run: bool,
    wait: bool,
    runs_dir: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Submit a stage, or both, to Slurm or to this machine.

    \b
    mgpt4 submit --stage 2 --gpus 1
    mgpt4 submit --stage both --gpus 4 --nodes 2 --partition a100-preempt
    """
    from mgpt4_hpc.launch import orders

    order = orders.Order(
        stage=stage,
        configs=config_names,
        name=name,
        launch={key: value for key, value in asked.items() if value is not None},
        assignments=assignments,
        sbatch=sbatch_options,
        site=site,
        after=after_name,
        executor=executor,
        runs_dir=absolute(runs_dir),
        dry_run=dry_run,
    )
    plan = orders.make_plan(order, os.environ)
    for line in plan.notes:
        click.echo(line, err=True)
    if dry_run:
        _show_scripts(plan, as_json)
        return
    submitted = orders.carry_out(plan, say=lambda text: click.echo(text, err=True), wait=wait)
    if as_json:
        echo_json(
            [
                {
                    "run": s.run.name,
                    "run_dir": s.run.path,
                    "job_id": s.job_id,
                    "executor": s.executor,
                }
                for s in submitted
            ]
        )
        return
    for job in submitted:
        click.echo(f"{job.run.name}  {job.executor} job {job.job_id}  {job.run.path}")
    click.echo(
        f"follow it:  mgpt4 status --runs-dir {order.runs_dir}\n"
        f"curves:     tensorboard --logdir {order.runs_dir}",
        err=True,
    )


def _show_scripts(plan: Any, as_json: bool) -> None:
    from mgpt4_hpc.launch import orders

    scripts = orders.render_plan(plan)
    if as_json:
        echo_json(scripts)
        return
    for run_name, script in scripts.items():
        click.echo(f"# {run_name}" if len(scripts) > 1 else "", nl=len(scripts) > 1)
        click.echo(script)
