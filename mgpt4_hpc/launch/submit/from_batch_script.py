"""Make a run directory from inside a job, for batch scripts that were submitted by hand."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mgpt4_hpc.config.assignments import read_assignments
from mgpt4_hpc.errors import StorageTrouble
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.requeue import exit_code, requeue_without_run_dir
from mgpt4_hpc.launch.runs.job_ref import note_job
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.launch.submit.site_profile import choose_site, load_here
from mgpt4_hpc.launch.submit.submit_run import create_run
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir


@click.command()
@click.option("--config", required=True, help="Preset or YAML file.")
@click.option("--run-dir", type=click.Path(path_type=Path), required=True)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting.")
def command(config: str, run_dir: Path, assignments: tuple[str, ...]) -> None:
    """Make RUN_DIR unless it exists; note which job works on it.

    A requeued job finds its run directory and changes nothing in it, so that the configuration
    of the first start holds for the whole run. Where storage does not show it, the job is put back
    into the queue.
    """
    run, start = RunDir(run_dir.absolute()), start_of(os.environ)
    try:
        if not retry_storage(run.identity_file.exists):
            if start.restart_count and not run.path.parent.is_dir():
                # Not a run that is still to be made: the first start would have made this.
                raise StorageTrouble(f"{run.path.parent} is not there on this node")
            _make(run, config, assignments)
        retry_storage(lambda: assert_owned(run.path))
    except StorageTrouble as trouble:
        # No supervisor follows: it would execute what no check could read.
        decision = requeue_without_run_dir(run, start, trouble.what)
        click.echo(decision.reason, err=True)
        sys.exit(exit_code(decision))
    try:
        note_job(run, "slurm", start.job_id, name=os.environ.get("SLURM_JOB_NAME", ""))
    except OSError as error:  # a full quota; the ledger has the job, too
        click.echo(f"which job works on the run cannot be noted: {error}", err=True)


def _make(run: RunDir, config: str, assignments: Sequence[str]) -> None:
    settings, faults = read_assignments(assignments)
    overrides = {
        "launch.gpus": int(os.environ["SLURM_NTASKS"]),
        "launch.nodes": int(os.environ["SLURM_JOB_NUM_NODES"]),
        # A folder may be called anything, a run and its Slurm job may not.
        "name": re.sub(r"[^A-Za-z0-9_.-]", "-", run.name).lstrip("_.-") or "run",
        **settings,
    }
    resolved = load_here(config, overrides, faults, choose_site(None))
    preflight(resolved.config, run.path.parent, executor="none")
    create_run(run, resolved)
