"""What an unfinished attempt's end was, and whether the run comes back. Pure functions.

What a job sees of itself in ``scontrol show job`` (measured on Slurm 22.05):

=========================================  =========================================
Restarts above SLURM_RESTART_COUNT         it was requeued already
RUNNING with PreemptTime                   being preempted, in its grace time
COMPLETING, PreemptTime about EndTime      preempted without grace, or the grace is over, and
                                           PreemptMode=CANCEL: a requeue of its own still works
COMPLETING, Reason=TimeLimit               timed out; a requeue still works
RUNNING, warned shortly before TimeLimit   about to time out
COMPLETING otherwise                       cancelled by a user: never start it again
unreadable                                 unknown: leave the command behind
=========================================  =========================================

A cancel, a requeue, a time-out and the end of a grace time all show COMPLETING, so the state
alone proves nothing; and PreemptTime stays set when a user cancels during the grace time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.telemetry.causes import Cause

SIGNAL_EARLY_S = 60.0
"""Slurm may send the warning before a time limit this much earlier than asked (sbatch --signal)."""

_SAME_MOMENT = timedelta(seconds=2)

LOST_NODE_STATES = frozenset({"NODE_FAIL", "BOOT_FAIL"})
"""States of a job that lost a node; Slurm requeues it by itself where it may."""

_NO_CHANCE = frozenset({Cause.PREEMPTED, Cause.REQUEUED, Cause.BAD_NODE, Cause.NODE_LOST})


class Action(StrEnum):
    """What happens to the run next."""

    REQUEUE = "requeue"
    RESUBMIT = "resubmit"
    """The job may not be requeued: it submits another that continues."""
    LEAVE = "leave"
    GIVE_UP = "give up"
    ASK = "ask"
    DEFER = "defer"
    """Nothing yet: the batch script, outside of the ranks' container, can ask Slurm."""


@dataclass(frozen=True)
class Decision:
    """Cause, action, and the sentence that explains them."""

    cause: Cause
    action: Action
    reason: str

    @property
    def goes_on(self) -> bool:
        """Whether the run comes back by itself."""
        return self.action in (Action.REQUEUE, Action.RESUBMIT)


@dataclass(frozen=True)
class PastAttempt:
    """What the budgets need to know of an earlier attempt.

    Attributes:
        cause: why it ended.
        progressed: whether a checkpoint newer than the one it started from became durable.
    """

    cause: str
    progressed: bool


def classify(
    facts: JobFacts | None, restart_count: int, signal_name: str | None, signal_before_s: float
) -> Cause:
    """Why a Slurm job's attempt is ending.

    Args:
        facts: of the job now; None if Slurm did not answer.
        restart_count: SLURM_RESTART_COUNT of this start.
        signal_name: the stop signal that came, None if the ranks ended without one.
        signal_before_s: how long before the time limit Slurm was asked to warn.
    """
    if facts is None:
        return Cause.UNKNOWN
    if facts.restarts > restart_count:
        return Cause.REQUEUED
    if facts.preempt_time is not None and (
        facts.state == "RUNNING" or _at_once(facts.preempt_time, facts.end_time)
    ):
        return Cause.PREEMPTED
    if facts.reason == "TimeLimit":
        return Cause.TIME_LIMIT
    if facts.time_limit_s is not None:
        left_s = facts.time_limit_s - facts.run_time_s
        warned = signal_name == "SIGUSR2" and left_s <= signal_before_s + SIGNAL_EARLY_S
        if facts.state == "RUNNING" and (left_s <= 0 or warned):
            return Cause.TIME_LIMIT
    if facts.state in LOST_NODE_STATES:
        return Cause.CRASHED
    if facts.state != "RUNNING":
        return Cause.CANCELLED
    return Cause.SIGNALLED if signal_name else Cause.CRASHED


def _at_once(first: str, other: str) -> bool:
    """Whether Slurm set both times in one go: it looks at the clock for each."""
    try:
        apart = datetime.fromisoformat(first) - datetime.fromisoformat(other)
    except ValueError:
        return False
    return abs(apart) <= _SAME_MOMENT


def decide(
    cause: Cause,
    this: PastAttempt,
    earlier: Sequence[PastAttempt],
    budget: LaunchConfig,
    *,
    requeue_allowed: bool = True,
    bad_nodes: int = 0,
) -> Decision:
    """What happens to an unfinished run.

    Preemptions are free. Time-outs, crashes and hangs have budgets, and so have attempts in a row
    that brought nothing (those that were preempted, lost a node or met a bad one do not count: they
    were given no chance).

    Args:
        cause: why this attempt ends.
        this: whether this attempt progressed.
        earlier: the attempts before it, oldest first.
        budget: the run's limits.
        requeue_allowed: Slurm's own say for this job.
        bad_nodes: how many nodes this job has found unfit so far.
    """
    if cause is Cause.REQUEUED:
        return Decision(cause, Action.LEAVE, "the job is back in the queue already")
    if cause is Cause.CANCELLED:
        return Decision(cause, Action.LEAVE, "cancelled by a person: not requeued")
    if cause is Cause.UNKNOWN:
        return Decision(cause, Action.ASK, "Slurm did not say why the job ends")

    causes = [attempt.cause for attempt in earlier] + [cause]
    for kind, limit, setting in (
        (Cause.TIME_LIMIT, budget.max_timeouts, "launch.max_timeouts"),
        (Cause.CRASHED, budget.max_crashes, "launch.max_crashes"),
        (Cause.HUNG, budget.max_hangs, "launch.max_hangs"),
    ):
        count = causes.count(kind)
        if cause is kind and count > limit:
            return Decision(
                cause, Action.GIVE_UP, f"{kind} {count} times, {setting} allows {limit}"
            )
    if cause is Cause.BAD_NODE and bad_nodes > budget.max_bad_nodes:
        return Decision(
            cause,
            Action.GIVE_UP,
            f"{bad_nodes} nodes failed the check, launch.max_bad_nodes allows "
            f"{budget.max_bad_nodes}",
        )
    stalled = _stalled_in_a_row([*earlier, PastAttempt(cause, this.progressed)])
    if stalled >= budget.max_stalled_attempts:
        return Decision(
            cause,
            Action.GIVE_UP,
            f"{counted(stalled, 'attempt')} in a row made no checkpoint "
            "(launch.max_stalled_attempts)",
        )
    if not requeue_allowed:
        reason = f"{cause}: Slurm does not allow this job to be requeued"
        return Decision(cause, Action.RESUBMIT, reason)
    return Decision(cause, Action.REQUEUE, f"{cause}: the run goes on from its last checkpoint")


def _stalled_in_a_row(attempts: Sequence[PastAttempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if attempt.cause in _NO_CHANCE:
            continue
        if attempt.progressed:
            break
        count += 1
    return count
