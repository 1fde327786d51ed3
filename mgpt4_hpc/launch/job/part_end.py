"""The end of a task of an array that was killed or stopped: requeue it, unless it was cancelled.

The last line of a task's batch script (``launch.side_jobs.array``). Slurm itself requeues a task
that is alive when it is preempted. It does not requeue one that is killed, that exits while it is
being preempted, or that reaches its time limit.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.requeue import ask_slurm, requeue
from mgpt4_hpc.launch.job.requeue_policy import Action, PastAttempt, decide
from mgpt4_hpc.launch.slurm.commands import signals_held_back
from mgpt4_hpc.telemetry.causes import Cause

_OWN = (".log", ".ends", ".done")


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
    if decision.action is not Action.REQUEUE:
        return f"no requeue: {decision.reason}"
    with ends.open("a", encoding="utf-8") as file:
        file.write(json.dumps([cause, this.progressed, written]) + "\n")
    refusal = requeue(start)
    return f"{cause}: requeued" if refusal is None else f"no requeue: {cause}; but {refusal.what}"


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
    parser.add_argument("--signal", help="the stop signal, as SIGTERM")
    arguments = parser.parse_args(argv)
    # Slurm signals this process after the requeue, and at the end of a grace time.
    with signals_held_back():
        print(
            f"part {arguments.part.name}: {end_part(arguments.part, arguments.signal)}", flush=True
        )


if __name__ == "__main__":
    main()
