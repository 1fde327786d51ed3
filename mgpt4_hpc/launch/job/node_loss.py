"""Why the start before this one ended, where its own processes could not know.

When a node is lost, Slurm requeues the job itself. What lives on the other nodes sees a requeue,
and on the lost one nothing lives. Accounting remembers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.job.requeue_policy import LOST_NODE_STATES
from mgpt4_hpc.launch.slurm.commands import run_slurm
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE
from mgpt4_hpc.telemetry.ledger import append_supervisor_note, read_ledgers

ASK_S = 5.0
"""Patience with accounting: nothing but the history depends on its answer."""

_UNEXPLAINED = frozenset({UNKNOWN_CAUSE, RUNNING_CAUSE, Cause.REQUEUED})
"""The newest attempt counts as running until somebody says that it ended."""


def explain_last_end(
    run: RunDir,
    start: JobStart,
    ask: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """Write down that the start before ``start`` lost a node, if accounting says so.

    To be called before this start claims an attempt. Without accounting nothing happens.

    Args:
        run: the run.
        start: of the job that is starting now.
        ask: for the output of sacct, times in unix seconds; replaced by tests.
    """
    command = ("sacct", "-D", "-X", "-n", "-P", "-j", start.job_id, "-o", "End,State")
    try:
        last = _unexplained(run, start)
        if last is None:
            return
        rows = [row.split("|") for row in (ask or _ask)(command).splitlines()]
        ended = [row for row in rows if len(row) == 2 and row[0][:1].isdigit()]
        if not ended:
            return
        when, state = ended[-1][0], ended[-1][1].split()[0]
        if state not in LOST_NODE_STATES:
            return
        append_supervisor_note(
            run.ledger,
            last.number,
            cause=Cause.NODE_LOST,
            reason=f"Slurm: {state} on {', '.join(last.nodes)}",
            job_id=start.job_id,
            restart_count=last.restart_count,
            ended_at=float(when),
        )
    except (MgptError, OSError, IndexError, ValueError) as error:
        print(f"why the last attempt ended is not known: {error}", flush=True)


def _ask(command: Sequence[str]) -> str:
    environ = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    return run_slurm(command, timeout_s=ASK_S, environ=environ)


def _unexplained(run: RunDir, start: JobStart) -> Attempt | None:
    if start.executor != "slurm" or start.restart_count == 0:
        return None
    last = next(
        (one for one in reversed(read_ledgers(run.ledger)) if start.is_of_job(one)),
        None,
    )
    if last is None or last.ended_itself or last.cause not in _UNEXPLAINED:
        return None
    return last if last.restart_count == start.restart_count - 1 else None
