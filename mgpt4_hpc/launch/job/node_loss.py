"""Why the start before this one ended, where its own processes could not know.

When a node is lost, Slurm requeues the job itself. What lives on the other nodes sees a requeue,
and on the lost one nothing lives. Accounting remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.job.requeue_policy import LOST_NODE_STATES
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.queue import ended_starts
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE
from mgpt4_hpc.telemetry.ledger import append_supervisor_note, read_ledgers

_UNEXPLAINED = frozenset({UNKNOWN_CAUSE, RUNNING_CAUSE, Cause.REQUEUED})
"""The newest attempt counts as running until its end is recorded."""


def explain_last_end(
    run: RunDir,
    start: JobStart,
    ask: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """Write down which starts before ``start`` lost a node, if accounting says so.

    To be called before this start claims an attempt. Without accounting nothing happens.

    Args:
        run: the run.
        start: of the job that is starting now.
        ask: for the output of sacct, times in unix seconds; replaced by tests.
    """
    try:
        unexplained = _unexplained(run, start)
        if not unexplained:
            return
        ended = ended_starts(start.job_id, ask)
        for restarts, (when, state) in zip(
            range(start.restart_count - 1, -1, -1), reversed(ended), strict=False
        ):
            if restarts in unexplained and state in LOST_NODE_STATES:
                _note(run, start, unexplained[restarts], state, when)
    except (MgptError, OSError, IndexError, ValueError) as error:
        print(f"why the last attempt ended is not known: {error}", flush=True)


def _note(run: RunDir, start: JobStart, lost: Attempt, state: str, ended_at: float) -> None:
    append_supervisor_note(
        run.ledger,
        lost.number,
        cause=Cause.NODE_LOST,
        reason=f"Slurm: {state} on {', '.join(lost.nodes)}",
        job_id=start.job_id,
        restart_count=lost.restart_count,
        ended_at=ended_at,
    )


def _unexplained(run: RunDir, start: JobStart) -> dict[int, Attempt]:
    """This job's attempts without a known end, by their restart count.

    Also older ones: accounting may not have answered, or not known it yet, at the start after one.
    """
    if start.executor != "slurm" or start.restart_count == 0:
        return {}
    return {
        attempt.restart_count: attempt
        for attempt in read_ledgers(run.ledger)
        if start.is_of_job(attempt) and not attempt.ended_itself and attempt.cause in _UNEXPLAINED
    }
