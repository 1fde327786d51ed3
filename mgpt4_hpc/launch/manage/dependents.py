"""Runs that wait for another run's end, when that one comes back as a new job.

A dependency names a job. Slurm cancels the jobs that waited for one that failed
(``--kill-on-invalid-dep=yes``), and where it does not, the job would wait for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.slurm.dependencies import wait_for
from mgpt4_hpc.run_dir import RunDir, list_runs

# `write_config` puts one setting on a line; reading the YAML of hundreds of runs would take long.
_PROJECTOR_LINE = re.compile(r"^  projector: (?!null\b)", re.MULTILINE)


def repoint(run: RunDir, job_id: str | None, say: Callable[[str], None]) -> list[RunDir]:
    """Let those that wait for ``run`` wait for its new job.

    Args:
        run: the run that was submitted again, or is finished.
        job_id: its new Slurm job; None if it needs none.
        say: called with what was done, and what could not be.

    Returns:
        runs with jobs that Slurm has cancelled, which need new ones.
    """
    waiting = _dependents(run)
    cancelled = []
    for other, seen in zip(waiting, look_at(waiting).rows if waiting else [], strict=True):
        if seen.state is RunState.PENDING and seen.attempt is None and job_id is not None:
            _move(other, seen, run, job_id, say)
        elif seen.state in (RunState.STOPPED, RunState.LOST) and seen.attempt is None:
            cancelled.append(other)
    return cancelled


def _dependents(run: RunDir) -> list[RunDir]:
    """Runs beside ``run`` that start from its projector and were submitted to Slurm."""
    dependents = []
    for other in list_runs(run.path.parent):
        try:
            if not _PROJECTOR_LINE.search(other.config_file.read_text(encoding="utf-8")):
                continue
            projector = read_config(other.config_file).config.model.projector
        except (OSError, ValueError, MgptError):
            continue
        if projector == str(run.path) and (other.slurm / "job.json").exists():
            dependents.append(other)
    return dependents


def _move(
    other: RunDir, seen: RunOverview, run: RunDir, job_id: str, say: Callable[[str], None]
) -> None:
    if seen.executor != "slurm" or seen.job_id is None or seen.cluster is not None:
        return
    try:
        wait_for(seen.job_id, job_id)
    except MgptError as error:
        say(
            f"{other.name} waits for the old job of {run.name}: mgpt4 cancel {other.name}, then "
            f"mgpt4 resume {other.name} ({error.what})"
        )
    else:
        say(f"{other.name} (job {seen.job_id}) now waits for job {job_id} of {run.name}")
