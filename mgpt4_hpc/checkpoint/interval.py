"""When to save: at a fixed interval, less often only where saving costs too much."""

from __future__ import annotations

from collections import deque
from statistics import median

MAX_OVERHEAD = 0.005
"""Largest share of the time that saving may hold up training."""


class SaveInterval:
    """Says when the next save is due.

    Args:
        save_every_s: wanted seconds between saves: the most work that a kill -9 can cost.
        started_at: now, on the clock of all later calls (seconds, monotonic).
        max_overhead: the interval grows only as far as a save's stall exceeds this share of it.
    """

    def __init__(
        self, save_every_s: float, *, started_at: float, max_overhead: float = MAX_OVERHEAD
    ) -> None:
        self.save_every_s = save_every_s
        self.max_overhead = max_overhead
        self._last = started_at
        # The median of a few: the first save also pays for its buffers.
        self._stalls_s: deque[float] = deque(maxlen=5)

    @property
    def interval_s(self) -> float:
        """Seconds between saves as they stand now."""
        if not self._stalls_s:
            return self.save_every_s
        return max(self.save_every_s, median(self._stalls_s) / self.max_overhead)

    def next_save_due(self, now: float) -> bool:
        """Whether the time has come."""
        return now - self._last >= self.interval_s

    def saved(self, now: float, stall_s: float) -> None:
        """A save was started at `now` and held the loop up for `stall_s` seconds."""
        self._last = now
        self._stalls_s.append(stall_s)
