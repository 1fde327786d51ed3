"""Which attempts belong to a start of a job."""

from __future__ import annotations

import pytest

from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.telemetry.attempts import Attempt

START = JobStart("slurm", "17", 1, succeeds=("11", "12"), cluster="alpha")


@pytest.mark.parametrize(
    ("attempt", "of_start", "of_job"),
    [
        (Attempt(1, job_id="17", restart_count=1), True, True),
        (Attempt(1, job_id="17", restart_count=0), False, True),
        (Attempt(1, job_id="12", restart_count=1), False, True),
        (Attempt(1, job_id="18", restart_count=1), False, False),
        (Attempt(1, job_id="17", restart_count=1, cluster="alpha"), True, True),
        (Attempt(1, job_id="17", restart_count=1, cluster="beta"), False, False),
        (Attempt(1, restart_count=1, supervisor={"job_id": 17}), True, True),
    ],
)
def test_by_job_restart_and_cluster(attempt: Attempt, of_start: bool, of_job: bool) -> None:
    assert (START.is_of(attempt), START.is_of_job(attempt)) == (of_start, of_job)
