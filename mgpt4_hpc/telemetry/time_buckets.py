"""Clocks for the training loop: where the seconds go, how fast samples pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

from mgpt4_hpc.telemetry.awake_clock import AwakeClock, awake_clock

PRODUCTIVE: Final = "productive"
QUEUE_WAIT: Final = "queue_wait"
START_UP: Final = "start_up"
WEIGHTS_LOADING: Final = "weights_loading"
DATA_WAIT: Final = "data_wait"
CHECKPOINT_STALL: Final = "checkpoint_stall"
VALIDATION: Final = "validation"
REPLAYED: Final = "replayed"
WIND_DOWN: Final = "wind_down"
SUSPENDED: Final = "suspended"

BADPUT: Final = (
    QUEUE_WAIT,
    START_UP,
    WEIGHTS_LOADING,
    DATA_WAIT,
    CHECKPOINT_STALL,
    VALIDATION,
    REPLAYED,
    WIND_DOWN,
    SUSPENDED,
)
"""Where time goes that trains nothing, in the order in which a job meets it.

`queue_wait` and `replayed` are worked out afterwards, from the ledgers of several attempts.
"""

WITHOUT_GPU: Final = (QUEUE_WAIT, SUSPENDED)
"""Those in which the run uses no GPU."""


class Buckets:
    """Seconds by purpose, exclusively: time spent in an inner purpose is not the outer one's.

    So the buckets never add up to more than the time that passed. For one thread. Time in which
    the process was suspended is in a bucket of its own.

    Args:
        clock: of this process; replaced by tests.
    """

    def __init__(self, clock: AwakeClock | None = None) -> None:
        self._clock = clock = clock or awake_clock()
        self._suspended_before_s = clock.suspended_s
        self._started = clock()
        self._since = self._started
        self._stack: list[str] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count the block's seconds under `name`."""
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that passed before this object existed, such as the imports'."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._started -= seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per bucket until now, the open ones included."""
        self._settle()
        suspended_s = self._clock.suspended_s - self._suspended_before_s
        return {**self._seconds, SUSPENDED: suspended_s} if suspended_s else dict(self._seconds)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, whether in a bucket or not, without those suspended."""
        return self._clock() - self._started

    def _settle(self) -> None:
        now = self._clock()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


class Stopwatch:
    """Seconds since the last lap, without those in which the process was suspended.

    Args:
        clock: seconds, monotonic; replaced by tests.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or awake_clock()
        self._since = self._clock()

    def lap(self) -> float:
        """Seconds since the last lap (or the start); begins the next one."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        return seconds


class Throughput:
    """Samples per second over the last steps: sums, not an average of rates.

    Args:
        window: number of steps looked back at.
    """

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, samples: float, seconds: float) -> None:
        """Record the samples and the seconds of a step."""
        self._steps.append((samples, seconds))

    @property
    def samples_per_s(self) -> float:
        """Rate over the window; 0 before the first step."""
        seconds = sum(seconds for _, seconds in self._steps)
        return sum(samples for samples, _ in self._steps) / seconds if seconds > 0 else 0.0

    @property
    def median_step_s(self) -> float:
        """Median seconds per step over the window: one stall does not show; 0 before the first."""
        return median(seconds for _, seconds in self._steps) if self._steps else 0.0

    @property
    def longest_step_s(self) -> float:
        """Seconds of the longest step in the window; 0 before the first."""
        return max((seconds for _, seconds in self._steps), default=0.0)
