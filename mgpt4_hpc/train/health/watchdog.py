"""Ends a process in which nothing moves any more, and says where it stood.

Every rank has its own: when one hangs, the others soon wait for it in a collective, and all of
them write their stacks, which show the rank that the others wait for. Then the process ends with
:data:`~mgpt4_hpc.errors.EXIT_HUNG`, and the supervisor decides whether the ranks come back.
A stopped rank (SIGSTOP), or one on a frozen node, writes nothing; the others end, and with them
the job. Time in which the process itself was suspended does not count: Slurm suspends all ranks.

A thread keeps the time. A hang inside a C call that holds the interpreter's lock keeps that thread
from running too, so it winds up an alarm clock each time it looks, which needs no lock.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from mgpt4_hpc.errors import EXIT_HUNG
from mgpt4_hpc.telemetry.awake_clock import awake_clock
from mgpt4_hpc.train.health.alarm import Alarm

PEERS_S = 10.0
"""From our stacks to our end: peers that wait for us write theirs meanwhile, before the first of us
to leave takes the others along."""

ALARM_DELAY_S = 5.0
"""How long after the thread should have acted the alarm clock's first stage does."""

_LOOK_EVERY_S = 5.0
_NOTE_S = 10.0
"""Patience with a disk that may be what hangs."""


@dataclass(frozen=True)
class Hang:
    """What is known of a hang.

    Attributes:
        phase: what the process was at, as "step" or "validation".
        silent_s: seconds since the last sign of life.
        allowed_s: how many were allowed.
        step: optimizer steps completed, 0 if this process has made none.
    """

    phase: str
    silent_s: float
    allowed_s: float
    step: int


class Watchdog:
    """Watches the calling process from :meth:`start` to :meth:`close`.

    Args:
        step_s: longest silence between steps; 0 watches nothing.
        slow_s: the same until the first step is done, which may compile, and in the phases that
            :meth:`phase` names: loading, validating.
        note: called at a hang, in another thread and with little time; may fail or hang itself.
        stream: where the stacks go; stderr's own descriptor if it has none (in a notebook, say).
        clock: seconds, monotonic, that stops while the process is suspended.
    """

    def __init__(
        self,
        step_s: float,
        slow_s: float,
        *,
        note: Callable[[Hang], None] = lambda hang: None,
        stream: TextIO | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.step_s = step_s
        self.slow_s = max(slow_s, step_s)
        self.note = note
        # Its descriptor: the stream's own lock may be held by the thread that hangs.
        self._fd = _descriptor(stream or sys.stderr)
        self._clock = clock or awake_clock()
        self._step: int | None = None
        self._phases: list[tuple[str, float]] = []
        self._since = self._clock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> Watchdog:
        """Begin to watch."""
        if self.step_s > 0 and self._thread is None:
            self._since = self._clock()
            self._alarm = Alarm(self._fd)
            self._wind_up(self._allowed()[1])
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def beat(self, step: int | None = None) -> None:
        """Something moved. Costs nothing.

        Args:
            step: optimizer steps completed, if that is what moved.
        """
        if step is not None:
            self._step = step
        self._since = self._clock()

    @contextmanager
    def phase(self, name: str, allowed_s: float | None = None) -> Iterator[None]:
        """A part of the work that takes longer than a step.

        Args:
            name: for the log.
            allowed_s: seconds without a beat; the slow phases' usual ones if not given.
        """
        self._phases.append((name, self.slow_s if allowed_s is None else allowed_s))
        self.beat()
        try:
            yield
        finally:
            self._phases.pop()
            self.beat()

    def close(self) -> None:
        """Watch no longer."""
        if self._thread is not None and os.getpid() == self._pid:
            self._closed.set()
            self._thread.join()
            self._thread = None

    def _allowed(self) -> tuple[str, float]:
        phases = self._phases
        if phases:
            return phases[-1]
        return ("first step", self.slow_s) if self._step is None else ("step", self.step_s)

    def _watch(self) -> None:
        try:
            while not self._closed.wait(self._look_every_s):
                phase, allowed_s = self._allowed()
                silent_s = self._clock() - self._since
                if silent_s >= allowed_s:
                    self._end(Hang(phase, silent_s, allowed_s, self._step or 0))
                self._wind_up(allowed_s - silent_s)
        finally:
            self._alarm.close()

    @property
    def _look_every_s(self) -> float:
        return min(_LOOK_EVERY_S, self.step_s / 4)

    def _wind_up(self, left_s: float) -> None:
        self._alarm.wind_up(left_s + self._look_every_s + ALARM_DELAY_S)

    def _end(self, hang: Hang) -> None:
        """Stacks first: whatever comes after may hang as well."""
        self._wind_up(_NOTE_S + PEERS_S)
        self._report(
            f"no sign of life for {hang.silent_s:.0f} s in phase {hang.phase!r} after step "
            f"{hang.step} ({hang.allowed_s:.0f} s are allowed); the stacks of all threads:"
        )
        faulthandler.dump_traceback(self._fd, all_threads=True)
        noting = threading.Thread(target=self.note, args=(hang,), name="hang-note", daemon=True)
        noting.start()
        noting.join(_NOTE_S)
        time.sleep(PEERS_S)
        self._report(f"this process ends itself with code {EXIT_HUNG}")
        os._exit(EXIT_HUNG)

    def _report(self, text: str) -> None:
        os.write(self._fd, f"\n=== hang: {text} ===\n".encode())


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return 2
