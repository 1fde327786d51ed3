"""What the demo and the drill share: toy runs that are started, watched, preempted and ended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any, Protocol

from mgpt4_hpc.launch.submit.plan import PlannedRun, SubmitRequest, make_plan
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun, create_run, submit_run
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import read_records

_STOP_TIMEOUT_S = 30.0


class Reporter(Protocol):
    """Shows what goes on; the command line gives one that draws."""

    def say(self, text: str) -> None:
        """Print a line."""

    def begin(self, what: str, total: int) -> None:
        """A new task of ``total`` units begins."""

    def advance_to(self, done: int, note: str = "") -> None:
        """So much of the task is done."""


def plan_one(request: SubmitRequest, environ: Mapping[str, str]) -> PlannedRun:
    """The only run of an order. Raises what `make_plan` raises."""
    plan = make_plan(request, environ)
    plan.assert_sound()
    (planned,) = plan.runs
    return planned


def start(planned: PlannedRun, executor: str, *, dependency: str | None = None) -> SubmittedRun:
    """Make the run directory and submit its job, under Slurm perhaps behind another."""
    create_run(planned.run, planned.resolved)
    return submit_run(planned.run, planned.resolved, executor, dependency=dependency)


def recorded_steps(run: RunDir) -> list[dict[str, Any]]:
    """Every record of a step with its loss, in the order of the attempts."""
    steps: list[dict[str, Any]] = []
    for path in sorted(run.ledger.glob("attempt-*.jsonl")):
        steps += [
            dict(record)
            for record in read_records(path)
            if record.get("kind") == Kind.STEPS and "loss" in record
        ]
    return steps


def preempt_local(job: SubmittedRun) -> None:
    """Send what Slurm sends at a preemption."""
    os.kill(int(job.job_id), signal.SIGTERM)


def stop_local(job: SubmittedRun) -> None:
    """Leave no process behind, whatever went wrong."""
    process = job.process
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
