"""``launch.on_event``: commands that get a run's events as JSON on their stdin.

They run where the decision falls: in rank 0, or in the batch script where no rank lived. Whatever
they do, hang or fail, the run is not touched by it; each event of one start is sent once.

===================  ================================================================
finished             the last step is done and saved
preempted            it had to leave its nodes, saved, and is back in the queue
requeued             the same after a time limit, a crash, a bad node
failed               it would fail again, or used up a budget: it stays away
resubmit-needed      it could go on, but no requeue was possible; ``command`` resubmits
===================  ================================================================
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause

FINISHED = "finished"
FAILED = "failed"
PREEMPTED = "preempted"
REQUEUED = "requeued"
RESUBMIT_NEEDED = "resubmit-needed"

_MOST_REASON_CHARS = 4000
"""The whole text must fit into a pipe, for a command that does not read must not block us."""
_AFTER_KILL_S = 1.0


def hook_event(decision: Decision) -> str | None:
    """Name of a decision's event; None if the user caused it."""
    if decision.action is Action.GIVE_UP:
        return FAILED
    if decision.action is Action.ASK:
        return RESUBMIT_NEEDED
    if decision.goes_on or decision.cause is Cause.REQUEUED:
        # Slurm puts a job back by itself where it is preempted without grace.
        is_preempted = decision.cause in (Cause.PREEMPTED, Cause.REQUEUED)
        return PREEMPTED if is_preempted else REQUEUED
    return None


def run_hooks(run: RunDir, start: JobStart, event: str | None, cause: str, reason: str) -> None:
    """Run the run's commands, all at once, and wait for them, but not long.

    Args:
        run: the run.
        start: which job, which restart.
        event: one of this module's words; None sends nothing.
        cause: why the attempt ended.
        reason: the sentence about it.
    """
    if event is None:
        return
    try:
        launch = read_config(run.config_file).config.launch
        if not launch.on_event or not _claim_event(run, start, event):
            return
        text = json.dumps(_facts(run, start, event, cause, reason), sort_keys=True) + "\n"
        # Slurm signals every process of a job that it ends; these get the time that we have.
        with commands.signals_held_back(), ThreadPoolExecutor(len(launch.on_event)) as pool:
            outputs = pool.map(
                lambda command: _run(command, text, launch.on_event_timeout_s), launch.on_event
            )
            for line in filter(None, outputs):
                print(line, flush=True)
    except Exception as error:  # noqa: BLE001 - nothing in here may harm the run
        print(f"on_event: {event} could not be sent: {error}", flush=True)


def _claim_event(run: RunDir, start: JobStart, event: str) -> bool:
    """Whether to send this event of this start: rank 0 and the batch script both may, one does."""
    folder = run.slurm / "told"
    whose = f"{start.cluster}-" if start.cluster else ""
    mark = folder / f"{whose}{start.job_id}-{start.restart_count}-{event}"
    try:
        folder.mkdir(exist_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        pass  # a full disk: better twice than never
    return True


def _facts(run: RunDir, start: JobStart, event: str, cause: str, reason: str) -> dict[str, Any]:
    seen = read_facts(run)
    return {
        "event": event,
        "run": run.name,
        "run_dir": str(run.path),
        "stage": seen.stage,
        "step": seen.step,
        "max_steps": seen.max_steps,
        "cause": str(cause),
        "reason": reason[:_MOST_REASON_CHARS],
        "executor": start.executor,
        "job_id": start.job_id,
        "restart_count": start.restart_count,
        "host": socket.gethostname(),
        "time": time.time(),
        "command": f"mgpt4 resume {shlex.quote(str(run.path))}"
        if event in (FAILED, RESUBMIT_NEEDED)
        else None,
    }


def _run(command: str, text: str, timeout_s: float) -> str:
    """Run one command without a shell; what went wrong, empty if nothing did.

    Its output goes where ours goes, the job's log: no pipe of it can hold us up.
    """
    try:
        process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return f"on_event: {command} cannot be started: {error}"
    assert process.stdin is not None
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it does not want to know
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(_AFTER_KILL_S)
        except subprocess.TimeoutExpired:
            pass  # it hangs in the kernel, as on a dead mount
        return f"on_event: {command} was killed, for it took longer than {timeout_s:g} s"
    return f"on_event: {command} ended with code {code}" if code else ""
