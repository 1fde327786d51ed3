"""What several test files share."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.run_dir import RunDir
from tests.cli.synthetic import Clock, attempt, make_run, submitted


def begun(
    runs: Path, name: str, job_id: str, cause: str | None = None, **settings: object
) -> RunDir:
    """A run whose job did something long ago."""
    run = make_run(runs, name, **settings)
    submitted(run, job_id)
    attempt(run, 1, first=1, last=5, cause=cause, job_id=job_id, clock=Clock(1e9))
    return run
