"""Why and when training must stop, without a word about who says so.

A handler only notes the signal: no collective, no write and no exit may happen inside one,
because it interrupts whatever the process was doing. The loop asks once per step.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)
"""TERM is a preemption, USR2 submitit's early warning, USR1 what many sites send instead."""


@dataclass(frozen=True)
class StopRequest:
    """A wish to stop after the current step.

    Attributes:
        reason: what was noticed, as ``SIGTERM``.
        since: when, seconds since the epoch.
    """

    reason: str
    since: float


class StopSource(Protocol):
    """Something that knows whether this process should stop."""

    def poll(self) -> StopRequest | None:
        """Return the first request, or None. Cheap: called once per step."""
        ...


class NeverStop:
    """For library use and tests: runs to the end."""

    def poll(self) -> StopRequest | None:
        """None, always."""
        return None


class SignalStop:
    """Notes the first of the stop signals; further ones change nothing.

    Args:
        signals: which to take.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        signals: Iterable[signal.Signals] = STOP_SIGNALS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.signals = tuple(signals)
        self._clock = clock
        self._request: StopRequest | None = None

    def install(self) -> SignalStop:
        """Take the signals over, then let those in that were blocked until now.

        Signals are blocked from the process's first instruction (see ``launch/shim.py``), so one
        that arrived while torch was importing is delivered here rather than lost.
        """
        for number in self.signals:
            signal.signal(number, self._note)
        # CONT comes with TERM at the start of a preemption's grace time and means nothing to us.
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)

    def request(self, reason: str) -> None:
        """Wish to stop without a signal; changes nothing once one came."""
        if self._request is None:
            self._request = StopRequest(reason, self._clock())

    def poll(self) -> StopRequest | None:
        """Return the first signal that came, or None."""
        return self._request
