"""A clock that stops while the process does: suspended by Slurm, stopped by Ctrl-Z, or frozen.

Slurm suspends a job by SIGSTOP or by freezing its cgroup, and the kernel keeps no record of either.
So a thread ticks. A gap between two ticks in which the process used no processor is such a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache

_TICK_S = 1.0

SHORTEST_S = 5.0
"""A shorter gap may be a busy machine, or a library that keeps the interpreter's lock."""

_MAX_BUSY = 0.1
"""Share of a gap in which the processor worked, from which on the process was not suspended."""


class AwakeClock:
    """Seconds, monotonic, without those in which this process was suspended.

    The first reader after such a time finds the gap, so no reader sees a jump.

    Args:
        clock: seconds, monotonic, whether suspended or not.
        processor: seconds of processor time that this process used.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._processor = clock, processor
        self._lock = threading.Lock()
        self._last, self._used = clock(), processor()
        self._suspended_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        with self._lock:
            now, used = self._clock(), self._processor()
            gap = now - self._last
            if gap > SHORTEST_S and used - self._used < _MAX_BUSY * gap:
                self._suspended_s += gap
            self._last, self._used = now, used
            return now - self._suspended_s

    @property
    def suspended_s(self) -> float:
        """Seconds suspended so far."""
        self()
        return self._suspended_s

    def tick(self) -> None:
        """Read the clock for ever, often enough that a gap means something."""
        while True:
            time.sleep(_TICK_S)
            self()


@cache
def awake_clock() -> AwakeClock:
    """This process's clock; the first call starts its thread."""
    clock = AwakeClock()
    threading.Thread(target=clock.tick, name="awake-clock", daemon=True).start()
    return clock
