"""Kill time of a stopping job, from Slurm."""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.job.requeue_policy import classify
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.train.stopping.stop import SignalStop, StopRequest

ASK_S = 3.0
"""Patience with Slurm when a signal came; without an answer the job stops at once."""

KILL_WAIT_S = 30.0
"""From TERM to KILL where nothing else is known: Slurm's KillWait by default."""

_LEAST_S = 10.0
"""Worth a try even if the end should be past by what we know."""


def find_deadline(
    facts: JobFacts | None, restart_count: int, signal_name: str, signal_before_s: float
) -> float | None:
    """When the job will be killed, seconds since the epoch; None if it should stop at once.

    EndTime is the time limit's, and during a preemption the end of its grace time (measured on
    Slurm 22.05). What comes after it (KillWait, OverTimeLimit, a controller that looks only every
    30 s) is not relied on.

    Args:
        facts: of the job now; None if Slurm did not answer.
        restart_count: SLURM_RESTART_COUNT of this start.
        signal_name: the stop signal that came.
        signal_before_s: how long before the time limit Slurm was asked to warn.
    """
    if facts is None or facts.state != "RUNNING":
        return None
    cause = classify(facts, restart_count, signal_name, signal_before_s)
    if cause not in (Cause.PREEMPTED, Cause.TIME_LIMIT):
        return None
    try:
        return calendar.timegm(time.strptime(facts.end_time, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


class DeadlineStop:
    """A job's stop signals, with the moment of its end; for the one rank that decides.

    Slurm is asked once per signal: a TERM may follow the warning before a time limit.

    Args:
        signals: this process's.
        start: the job's start.
        signal_before_s: how long before the time limit Slurm was asked to warn.
        ask: for the job's facts; replaced by tests.
    """

    def __init__(
        self,
        signals: SignalStop,
        start: JobStart,
        signal_before_s: float,
        ask: Callable[[str], JobFacts] = lambda job_id: scheduler().facts(job_id, timeout_s=ASK_S),
    ) -> None:
        self._signals = signals
        self._start = start
        self._signal_before_s = signal_before_s
        self._ask = ask
        self._asked_after = 0
        self._deadline: float | None = None

    def poll(self) -> StopRequest | None:
        """Return the first request, with the deadline as it is known after the last signal."""
        request = self._signals.poll()
        if request is None:
            return None
        count = self._signals.count
        if count != self._asked_after:
            self._asked_after = count
            self._deadline = self._find(request.reason)
        return replace(request, deadline=self._deadline)

    def request(self, reason: str) -> None:
        """Request a stop without a signal; changes nothing once one came."""
        self._signals.request(reason)

    def interrupting(self) -> AbstractContextManager[None]:
        """Inside, a signal raises; see :class:`~mgpt4_hpc.train.stopping.stop.SignalStop`."""
        return self._signals.interrupting()

    def _find(self, signal_name: str) -> float | None:
        try:
            facts = self._ask(self._start.job_id)
        except MgptError:
            return None
        return find_deadline(facts, self._start.restart_count, signal_name, self._signal_before_s)


def patience_until(request: StopRequest | None, now: float) -> float | None:
    """Until when Slurm may be asked before this process is killed, seconds since the epoch.

    None if there is no hurry.
    """
    if request is None:
        return None
    known = request.since + KILL_WAIT_S if request.deadline is None else request.deadline
    return max(known, now + _LEAST_S)
