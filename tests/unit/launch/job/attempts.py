"""Attempts of a run, and what an end leaves."""

from __future__ import annotations

from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, read_ledgers

START = JobStart("slurm", "17", 0)

PREEMPTED = {"preempt": "2026-03-01T10:00:00"}


def end(ledger: Ledger, cause: str, *, accepted: bool | None = None, code: int = 75) -> None:
    ledger.event(Kind.END, cause=cause, step=5, exit_code=code)
    if accepted is not None:
        ledger.event(Kind.REQUEUE, accepted=accepted)


def causes(run: RunDir) -> list[str]:
    return [found.cause for found in read_ledgers(run.ledger)]


def left_behind(run: RunDir) -> set[str]:
    return {path.name for path in (run.failed, run.resubmit_needed) if path.exists()}
