"""The end of an attempt that did not finish: find out why, decide, carry it out.

Rank 0 does this after its last save. Where no rank lived to do it, the batch script does (or the
local controller), so that exactly one of them requeues.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import EXIT_RESUMABLE, BadNode, FatalTrainingError, MgptError, SlurmRejected
from mgpt4_hpc.launch import slurm
from mgpt4_hpc.launch.cancel_mark import cancel_requested
from mgpt4_hpc.launch.decision import Action, Cause, Decision, PastAttempt, classify, decide
from mgpt4_hpc.launch.exclusion import exclude_nodes, nodes_found_bad
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.ledger import read_ledgers

EXIT_RESTART = 144
"""What submitit's local job side means by "start me again"."""

_FOUND_OUT = frozenset(
    {
        Cause.PREEMPTED,
        Cause.TIME_LIMIT,
        Cause.SIGNALLED,
        Cause.CANCELLED,
        Cause.CRASHED,
        Cause.BAD_NODE,
    }
)
"""Causes that stay true after rank 0 died."""

_TRIES = 3
_PAUSE_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class JobStart:
    """One start of one job.

    Attributes:
        executor: "slurm" or "local".
        job_id: as the executor names it.
        restart_count: requeues before this start.
    """

    executor: str
    job_id: str
    restart_count: int

    def is_of(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this start."""
        return self.is_of_job(attempt) and attempt.restart_count == self.restart_count

    def is_of_job(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this job, in whichever start."""
        return (attempt.job_id or str(attempt.supervisor.get("job_id", ""))) == self.job_id


def find_decision(
    run: RunDir, start: JobStart, budget: LaunchConfig, signal_name: str | None, this: PastAttempt
) -> Decision:
    """Why this attempt ends and what becomes of the run.

    The budgets are those of a job: a person who submits a run again means it.

    Args:
        run: the run.
        start: the job's start.
        budget: limits, and how long before the time limit Slurm warns.
        signal_name: the stop signal; None if the ranks ended without one.
        this: whether the attempt progressed, and its cause where rank 0 found it out and died
            before it could act.
    """
    requeue_allowed = True
    if start.executor == "local":
        # Nobody but a person or the demo signals a local job, and means what Slurm would mean.
        cause = Cause.PREEMPTED if signal_name else Cause.CRASHED
    else:
        facts = _try_often(lambda: slurm.job_facts(start.job_id))
        cause = classify(facts, start.restart_count, signal_name, budget.signal_before_s)
        requeue_allowed = facts is None or facts.requeue_allowed
    if this.cause in _FOUND_OUT and cause not in (Cause.REQUEUED, Cause.CANCELLED):
        cause = Cause(this.cause)
    if cause is not Cause.REQUEUED and cancel_requested(run, start.job_id):
        cause = Cause.CANCELLED
    mine = [attempt for attempt in read_ledgers(run.ledger) if start.is_of_job(attempt)]
    if cause is Cause.BAD_NODE and start.executor == "local":
        return Decision(cause, Action.GIVE_UP, "this machine is unfit, and there is no other")
    return decide(
        cause,
        this,
        [past(attempt) for attempt in mine if not start.is_of(attempt)],
        budget,
        requeue_allowed=requeue_allowed,
        bad_nodes=len(nodes_found_bad(mine)),
    )


def past(attempt: Attempt) -> PastAttempt:
    """What budgets need to know of a ledger's attempt."""
    saved = attempt.last_saved_step
    return PastAttempt(attempt.cause, saved is not None and saved > attempt.restored_step)


def carry_out(
    run: RunDir, start: JobStart, decision: Decision, bad_nodes: Sequence[str] = ()
) -> Decision:
    """Requeue, or leave behind what a person needs to know.

    After a bad node the job is kept away from all that it found bad so far.

    Args:
        run: the run.
        start: the job's start.
        decision: what is to be done.
        bad_nodes: found unfit, where the ledger may not be able to say so.

    Returns:
        the decision; a requeue that Slurm refused has become a request to a person.
    """
    if decision.action is Action.REQUEUE and start.executor == "slurm":
        refusal, excluded = _requeue_elsewhere(run, start, decision, bad_nodes)
        decision = replace(decision, reason=f"{decision.reason}{excluded}")
        if refusal:
            decision = replace(
                decision, action=Action.ASK, reason=f"{decision.reason}; but {refusal}"
            )
    if decision.action is Action.ASK:
        command = f"mgpt4 resume {shlex.quote(str(run.path))}"
        _leave_behind(run.resubmit_needed, f"{decision.reason}\n\n{command}\n")
    if decision.action is Action.GIVE_UP:
        _leave_behind(run.failed, decision.reason + "\n")
    return decision


def _leave_behind(marker: Path, text: str) -> None:
    try:
        marker.write_text(text, encoding="utf-8")
    except OSError as error:  # a full disk: then the job's log is all there is
        print(f"{marker} could not be written ({error}); it would say: {text}", flush=True)


def exit_code(decision: Decision) -> int:
    """The trainer's exit code for an unfinished run: never 0, or a dependent job would start."""
    if decision.cause is Cause.BAD_NODE:
        return BadNode.exit_code
    return FatalTrainingError.exit_code if decision.action is Action.GIVE_UP else EXIT_RESUMABLE


def _requeue_elsewhere(
    run: RunDir, start: JobStart, decision: Decision, bad_nodes: Sequence[str]
) -> tuple[str, str]:
    """Why there was no requeue (empty if there was), and what was excluded."""
    # Slurm ends this very process after the requeue; the exclusion is possible only then.
    with slurm.signals_held_back():
        refusal = _requeue(start)
        if refusal or decision.cause is not Cause.BAD_NODE:
            return refusal, ""
        mine = [attempt for attempt in read_ledgers(run.ledger) if start.is_of_job(attempt)]
        nodes = list(dict.fromkeys([*nodes_found_bad(mine), *bad_nodes]))
        return "", f"; {exclude_nodes(start.job_id, nodes)}" if nodes else ""


def _requeue(start: JobStart) -> str:
    """Empty on success, else why not; the restart count is believed, not scontrol alone."""
    refusal = ""
    for attempt in range(_TRIES):
        try:
            slurm.requeue(start.job_id)
            return ""
        except MgptError as error:
            refusal = error.what
            if _is_requeued(start):
                return ""
            if isinstance(error, SlurmRejected):
                return refusal
            time.sleep(_PAUSE_S * 2**attempt)
    return refusal


def _is_requeued(start: JobStart) -> bool:
    try:
        return slurm.job_facts(start.job_id).restarts > start.restart_count
    except MgptError:
        return False


def _try_often(ask: Callable[[], T]) -> T | None:
    for attempt in range(_TRIES):
        try:
            return ask()
        except MgptError:
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE_S * 2**attempt)
    return None
