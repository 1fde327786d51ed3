"""Why and when training must stop, without a word about who says so.

A handler only notes the signal: no collective, no write and no exit may happen inside one,
because it interrupts whatever the process was doing. The loop asks once per step. What takes
minutes and can be thrown away (loading weights, waiting for other ranks) is interrupted instead.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, TypeVar

from mgpt4_hpc.stop_signals import STOP_SIGNALS as ALL_STOP_SIGNALS

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)
"""TERM is a preemption, USR2 submitit's early warning, USR1 what many sites send instead."""

WARNING = signal.SIGUSR2
"""Comes a minute or more before the end (``sbatch --signal``); Slurm sends TERM at the end."""

_ALWAYS = ("TERM", "USR2")


def stop_signals(names: Iterable[str]) -> tuple[signal.Signals, ...]:
    """The signals of ``launch.stop_signals``, and those that Slurm sends in any case."""
    return tuple(signal.Signals[f"SIG{name}"] for name in dict.fromkeys((*_ALWAYS, *names)))


ANOTHER_RANK = "another rank's signal"
"""Reason of a rank that was asked by its peers."""

T = TypeVar("T")


class Interrupted(BaseException):
    """Raised in the main thread by a stop signal, inside :meth:`StopSource.interrupting` only.

    No Exception, so that no handler takes it for a fault and continues.
    """


@dataclass(frozen=True)
class StopRequest:
    """A request to stop after the current step.

    Attributes:
        reason: what was noticed, as ``SIGTERM``.
        since: when, seconds since the epoch.
        deadline: when this process will be killed, seconds since the epoch; until then it may go
            on. None is at once.
    """

    reason: str
    since: float
    deadline: float | None = None


class StopSource(Protocol):
    """Something that knows whether this process should stop, why, and by when."""

    def poll(self) -> StopRequest | None:
        """Return the request, or None. Cheap while there is none: called once per step."""

    def request(self, reason: str) -> None:
        """Request a stop without a signal; changes nothing once one came."""

    def interrupting(self) -> AbstractContextManager[None]:
        """Inside, an urgent signal raises :class:`Interrupted`; also one that came before."""


class NeverStop:
    """For library use and tests: runs to the end."""

    def poll(self) -> StopRequest | None:
        """None, always."""
        return None

    def request(self, reason: str) -> None:
        """Change nothing."""

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Interrupt nothing."""
        yield


def unless_stopped(stop: StopSource, action: Callable[[], T]) -> T | None:
    """What ``action`` returns, or None if a stop signal put an end to it.

    For work that leaves nothing half done behind when it ends anywhere.
    """
    try:
        with stop.interrupting():
            return action()
    except Interrupted:
        return None


def log_signals(
    signals: Iterable[signal.Signals], say: Callable[[str], None] = print
) -> threading.Thread:
    """Log each signal the moment it arrives, in a thread, for the life of the process.

    Python calls a handler only between two of the main thread's own instructions, and a step or a
    load can be one call of minutes. The interpreter notes the signal's number in a pipe at once.

    Args:
        signals: those that have a handler; call it in the main thread.
        say: takes the line.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    names = {int(number): number.name for number in signals}

    def follow() -> None:
        """Print a line for each number that the interpreter writes into the pipe."""
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in names:
                    say(f"{time.strftime('%H:%M:%S')} === {names[number]} arrived ===")

    thread = threading.Thread(target=follow, name="signal-log", daemon=True)
    thread.start()
    return thread


class SignalStop:
    """Notes the first of the stop signals; further ones are counted and change nothing.

    Args:
        signals: which to take.
        clock: seconds since the epoch.

    Attributes:
        count: signals so far.
    """

    def __init__(
        self,
        signals: Iterable[signal.Signals] = STOP_SIGNALS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.signals = tuple(signals)
        self._clock = clock
        self._request: StopRequest | None = None
        self._interrupting = False
        self._urgent = False
        self.count = 0

    def install(self) -> SignalStop:
        """Take the signals over, then let those in that were blocked until now.

        Signals are blocked from the process's first instruction (see
        ``launch/job/launcher_script.py``), so one that arrived while torch was importing is
        delivered here rather than lost.
        """
        for number in self.signals:
            signal.signal(number, self._note)
        # CONT comes with TERM at the start of a preemption's grace time and means nothing to us.
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        # Also those that this run does not take: they do what they do to any process.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals(ALL_STOP_SIGNALS))
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.request(signal.Signals(number).name)
        self._urgent = self._urgent or number != WARNING
        if self._interrupting and self._urgent:
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises :class:`Interrupted`; also one that came before.

        All but the warning: after it there is time to finish what was begun, and a TERM follows.
        """
        self._interrupting = True
        try:
            if self._urgent:
                raise Interrupted
            yield
        finally:
            self._interrupting = False

    def request(self, reason: str) -> None:
        """Request a stop without a signal; changes nothing once one came.

        A local signal, even a step late, replaces a peer's request: it carries the reason, and
        so by when.
        """
        if self._request is None or (
            self._request.reason == ANOTHER_RANK and reason != ANOTHER_RANK
        ):
            self._request = StopRequest(reason, self._clock())

    def poll(self) -> StopRequest | None:
        """Return the first signal that came, or None."""
        return self._request
