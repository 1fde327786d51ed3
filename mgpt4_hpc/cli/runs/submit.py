"""``mgpt4 submit``: preflight, run directory, job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json, say
from mgpt4_hpc.cli.shared.options import (
    SettingType,
    absolute,
    executor_option,
    given_runs_dir,
    json_option,
    runs_dir_option,
    set_option,
    site_option,
    where_options,
)
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import ConfigError

if TYPE_CHECKING:
    from mgpt4_hpc.launch.submit.plan import Plan
    from mgpt4_hpc.launch.submit.submit_run import SubmittedRun


@click.command("submit", short_help="Submit a stage, or both, to Slurm or to this machine.")
@click.option("--stage", type=click.Choice(["1", "2", "both"]), help="Which stage to train.")
@click.option(
    "--config",
    "configs",
    multiple=True,
    metavar="PRESET|FILE",
    help="Settings. With --stage both, give it twice: stage 1's, then stage 2's.",
)
@click.option("--name", help="Name of the run and its folder; of a sweep the beginning.")
@click.option(
    "--gpus",
    type=SettingType(click.INT),
    help="GPUs of the whole job, one task each; with --stage both of stage 1's.",
)
@click.option(
    "--nodes",
    type=SettingType(click.INT),
    help="Nodes to spread the GPUs over; with --stage both stage 1's.",
)
@where_options
@click.option("--mail-type", metavar="TYPE,...", help="When Slurm mails: END, FAIL, REQUEUE ...")
@click.option("--mail-user", metavar="ADDRESS", help="Recipient of Slurm's mail.")
@click.option(
    "--after",
    "after",
    metavar="RUN",
    help="Start when that run has finished, from its projector, on its bundle.",
)
@click.option(
    "--from",
    "origin",
    metavar="RUN[@STEP]",
    help="A new run with that run's settings, from its projector.",
)
@click.option(
    "--continue",
    "continues",
    is_flag=True,
    help="With --from: take over its optimizer and position, too.",
)
@set_option()
@click.option(
    "--sweep",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="One run for each value, as lr=1e-4,9e-5; repeated, for each combination.",
)
@click.option(
    "--max-parallel",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --sweep: at most N jobs at once.",
)
@click.option(
    "--sbatch",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any further sbatch option; repeat for more.",
)
@site_option
@executor_option
@click.option("--dry-run", is_flag=True, help="Print the batch script; write and submit nothing.")
@click.option("--test-only", is_flag=True, help="Ask Slurm when it would start; submit nothing.")
@click.option("--wait", is_flag=True, help="Stay until the run has finished.")
@runs_dir_option
@json_option
@click.pass_context
def submit_command(
    context: click.Context,
    /,
    dry_run: bool,
    test_only: bool,
    wait: bool,
    runs_dir: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Submit a stage, or both, to Slurm or to this machine.

    RUN is a run's name or path, or one of its checkpoints: RUN@STEP, RUN/checkpoints/step-N.
    With --after the model is RUN's: its bundle and conversation format. With --from all settings
    are RUN's, but for those of --set; the new run starts from RUN's projector, or with --continue
    resumes at RUN's step as RUN would have.

    \b
    mgpt4 submit --stage both --gpus 4 --nodes 2 --partition a100-preempt
    mgpt4 submit --stage 2 --gpus 1 --after stage1-vicuna7b
    mgpt4 submit --stage 1 --name my-sweep --sweep lr=1e-4,9e-5 --sweep seed=1,2 --max-parallel 2
    """
    from mgpt4_hpc.launch.submit.plan import SubmitRequest, make_plan

    if sum((dry_run, test_only, wait)) > 1:
        raise ConfigError("--dry-run, --test-only and --wait exclude each other", fix="give one")
    names = {field.name for field in fields(SubmitRequest)} & asked.keys()
    own = {name: asked.pop(name) for name in names}
    request = SubmitRequest(
        **own,
        launch={key: value for key, value in asked.items() if value is not None},
        runs_dir=given_runs_dir(context) if own["origin"] is None else absolute(runs_dir),
        dry_run=dry_run,
    )
    plan = make_plan(request, os.environ)
    for line in plan.notes:
        say(line)
    _show_or_submit(plan, dry_run=dry_run, test_only=test_only, wait=wait, as_json=as_json)


def _show_or_submit(
    plan: Plan, *, dry_run: bool, test_only: bool, wait: bool, as_json: bool
) -> None:
    """Print the plan's scripts, or when its jobs would start, or submit it."""
    from mgpt4_hpc.launch.submit.execute import submit_plan

    if dry_run and not plan.invalid:
        _show_scripts(plan, as_json)
    plan.assert_sound()
    if dry_run:
        return
    if test_only:
        _show_starts(plan, as_json)
        return
    submitted = submit_plan(plan, say=say, wait=wait)
    _show_jobs(plan, submitted, as_json)


def _show_scripts(plan: Plan, as_json: bool) -> None:
    from mgpt4_hpc.launch.submit.execute import render_plan

    scripts = render_plan(plan)
    if as_json:
        echo_json(scripts)
        return
    for name, script in scripts.items():
        click.echo(f"# {name}" if len(scripts) > 1 else "", nl=len(scripts) > 1)
        click.echo(script)
    if plan.sweep is not None:
        # Not in the script's stream: that can be given to sbatch as it is.
        click.echo(f"\n{len(plan.runs)} runs:", err=True)
        for item, point in zip(plan.runs, plan.sweep.points, strict=True):
            values = "  ".join(f"{key}={text}" for key, text in point.texts.items())
            click.echo(f"  {item.run.name}  {values}", err=True)


def _show_starts(plan: Plan, as_json: bool) -> None:
    from mgpt4_hpc.formatting import duration
    from mgpt4_hpc.launch.submit.start_estimate import estimate_starts

    estimates = estimate_starts(plan)
    if as_json:
        echo_json([asdict(estimated) for estimated in estimates])
        return
    rows = [
        (job.job, job.start, duration(job.in_s), job.partition, job.nodes, job.after)
        for job in estimates
    ]
    columns = ("job", "would start", ">in", "partition", "nodes", "after")
    print_rows(columns, ([cell or "-" for cell in row] for row in rows))
    click.echo("Slurm's estimate, as of now; nothing was submitted", err=True)


def _show_jobs(plan: Plan, submitted: Sequence[SubmittedRun], as_json: bool) -> None:
    if as_json:
        echo_json(
            [
                {
                    "run": job.run.name,
                    "run_dir": job.run.path,
                    "job_id": job.job_id,
                    "executor": job.executor,
                    **_sweep_facts(plan, number),
                }
                for number, job in enumerate(submitted)
            ]
        )
        return
    if plan.sweep is not None:
        _print_sweep(plan, submitted)
    else:
        for job in submitted:
            click.echo(f"{job.run.name}  {job.executor} job {job.job_id}  {job.run.path}")
    which = f" {plan.sweep.folder.name}" if plan.sweep is not None else ""
    here = shlex.quote(str(absolute(plan.runs_dir)))
    click.echo(
        f"follow it:  mgpt4 status{which} --runs-dir {here}\n"
        f"curves:     mgpt4 tensorboard --runs-dir {here}",
        err=True,
    )


def _sweep_facts(plan: Plan, number: int) -> dict[str, Any]:
    if plan.sweep is None:
        return {}
    return {"sweep": plan.sweep.folder.name, "values": dict(plan.sweep.points[number].texts)}


def _print_sweep(plan: Plan, submitted: Sequence[SubmittedRun]) -> None:
    assert plan.sweep is not None
    axes = list(plan.sweep.points[0].texts)
    rows = [
        (job.run.name, *point.texts.values(), job.job_id)
        for job, point in zip(submitted, plan.sweep.points, strict=True)
    ]
    print_rows(("run", *axes, "job"), rows)
