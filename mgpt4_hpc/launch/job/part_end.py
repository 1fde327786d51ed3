"""The end of a task of an array: release its dependents, requeue it, or let it stay away.

The last line of a task's batch script (``launch.side_jobs.array``). Slurm does not requeue a task
that is killed, that exits while it is being preempted, or that reaches its time limit. It may start
a finished one again (``launch.job.job_end``).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import MgptError, SlurmRejected
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.job_end import end_finished, end_unfinished
from mgpt4_hpc.launch.job.requeue import ask_slurm, requeue_job
from mgpt4_hpc.launch.job.requeue_policy import Action, PastAttempt, decide
from mgpt4_hpc.launch.job.successor import move_dependents, without_devices
from mgpt4_hpc.launch.slurm.commands import signals_held_back
from mgpt4_hpc.launch.slurm.dependencies import JobName, waiting_jobs
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.telemetry.causes import Cause

_OWN = (".log", ".ends", ".done", ".job")
_SIGNALLED = 128
"""A shell adds the signal's number to it for the exit code of a command that a signal ended."""
_ASK_S = 10.0
"""Patience with each command: the job may be killed in half a minute."""


def end_part(part: Path, signal_name: str | None) -> str:
    """Decide whether this start of a task is followed by another; a sentence for its log.

    The budgets are those of a run by default: five crashes, and three starts in a row of which
    none has written anything.

    Args:
        part: ``FOLDER/I``: the task's files in the array's folder have names that begin so.
        signal_name: the stop signal; None if the task ended without one.
    """
    start = start_of(os.environ)
    budget = LaunchConfig()
    cause, requeue_allowed = ask_slurm(start, budget, signal_name)
    ends = part.with_name(f"{part.name}.ends")
    written = _bytes_written(part)
    earlier, before = _read_ends(ends)
    this = PastAttempt(cause, written > before)
    decision = decide(cause, this, earlier, budget, requeue_allowed=requeue_allowed)
    if not decision.goes_on:
        if decision.action is Action.GIVE_UP or cause is Cause.CANCELLED:
            end_unfinished(start)
        return f"no requeue: {decision.reason}"
    with ends.open("a", encoding="utf-8") as file:
        file.write(json.dumps([cause, this.progressed, written]) + "\n")
    reason = decision.reason
    if decision.action is Action.REQUEUE:
        refusal = requeue_job(start)
        if refusal is None:
            return f"{cause}: requeued"
        reason = f"{cause}; but {refusal.what}"
        if not isinstance(refusal, SlurmRejected):
            return f"no requeue: {reason}"
    try:
        return f"{reason}; job {_submit_successor(part, start)} does it"
    except MgptError as error:
        return f"no requeue: {reason}; but no other job could be submitted: {error.what}"


def _submit_successor(part: Path, start: JobStart) -> str:
    """Submit this task alone, as a job that waits for the end of this one; its id.

    Raises:
        MgptError: there is none, and why.
    """
    name = JobName.of(start.job_id)
    script = part.with_name("array.sbatch" if name.task else "end.sbatch")
    array = [f"--array={name.task}"] if name.task else []
    options = [*array, f"--dependency=afterany:{start.job_id}"]
    waiting = waiting_jobs(timeout_s=_ASK_S)
    environ = without_devices(os.environ)
    successor = scheduler().submit(script, options, environ, timeout_s=_ASK_S)
    part.with_name(f"{part.name}.job").write_text(successor, encoding="utf-8")
    for line in move_dependents(name, successor, waiting):
        print(line, flush=True)
    return successor


def _bytes_written(part: Path) -> int:
    """Size of the results that the task has in the array's folder."""
    own = {f"{part.name}{suffix}" for suffix in _OWN}
    files = [*part.parent.glob(f"{part.name}.*"), *part.parent.glob(f"{part.name}-*")]
    return sum(path.stat().st_size for path in files if path.name not in own)


def _read_ends(path: Path) -> tuple[list[PastAttempt], int]:
    """Earlier starts, and the bytes of results at the last one's end."""
    if not path.exists():
        return [], 0
    attempts, written = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cause, progressed, written = json.loads(line)
        except ValueError:  # a kill or a full disk has cut it short
            cause, progressed = Cause.CRASHED, False
        attempts.append(PastAttempt(cause, progressed))
    return attempts, written


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the batch script's last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", type=Path)
    parser.add_argument("--exit-code", type=int, required=True, help="of the task's command")
    parser.add_argument("--signal", help="the stop signal, as SIGTERM")
    arguments = parser.parse_args(argv)
    part: Path = arguments.part
    # Slurm signals this process after the requeue, and at the end of a grace time.
    with signals_held_back():
        if arguments.exit_code == 0:
            # Beside the parts' folder, which the job that waits for them may remove now.
            end_finished(start_of(os.environ), part.parent.parent)
        elif arguments.exit_code <= _SIGNALLED:
            end_unfinished(start_of(os.environ))
        else:
            print(f"part {part.name}: {end_part(part, arguments.signal)}", flush=True)


if __name__ == "__main__":
    main()
