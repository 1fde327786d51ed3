"""Tests of ``launch/job/start_check.py``."""

from __future__ import annotations

from mgpt4_hpc.launch.job.start_check import why_leave
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger

AGAIN = JobStart("slurm", "17", 1)


def test_a_start_of_what_is_over_is_not_wanted(run: RunDir) -> None:
    assert why_leave(run, AGAIN) is None
    request_cancel(run, "16")
    assert why_leave(run, AGAIN) is None
    request_cancel(run, "17")
    assert why_leave(run, AGAIN) == (75, "a run was cancelled")
    run.failed.write_text("no\n")
    assert why_leave(run, AGAIN) == (70, "a run was given up: no\n")
    assert why_leave(run, JobStart("slurm", "18", 0)) is None
    Ledger(run.ledger, run.claim_attempt({"job_id": "17"})).event(
        Kind.END, cause="finished", step=5, exit_code=0
    )
    assert why_leave(run, JobStart("slurm", "18", 0)) == (
        0,
        "a run is finished: nothing is left to do",
    )
