"""`heartbeat.json`: the step a run is at, for processes outside of the job."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mgpt4_hpc.text_files import parse_json

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between writes at most often."""


@dataclass(frozen=True)
class Beat:
    """One sign of life: optimizer step, unix time in seconds, attempt, host and process."""

    step: int
    time: float
    attempt: int
    hostname: str = ""
    pid: int = 0


class Heartbeat:
    """Writes the file, atomically and at most every few seconds. Never raises for the disk.

    Args:
        path: RUN/heartbeat.json.
        attempt: number of this attempt.
        every_s: seconds between writes; calls in between cost nothing.
        clock: replaced by tests.
    """

    def __init__(
        self,
        path: Path,
        attempt: int,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self.attempt = attempt
        self.every_s = every_s
        self._clock = clock
        self._next_at = float("-inf")
        self._failed = False

    def beat(self, step: int, *, force: bool = False) -> bool:
        """Write where the run is; returns whether the file was written."""
        now = self._clock()
        if now < self._next_at and not force:
            return False
        self._next_at = now + self.every_s
        beat = Beat(step, time.time(), self.attempt, os.uname().nodename, os.getpid())
        tmp = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            tmp.write_text(json.dumps(asdict(beat)) + "\n")
            tmp.replace(self.path)
        except OSError as error:
            if not self._failed:
                log.warning("heartbeat %s cannot be written: %s", self.path, error)
            self._failed = True
            return False
        self._failed = False
        return True


def read_heartbeat(path: Path) -> Beat | None:
    """The newest beat, or None where there is none to be read."""
    try:
        data = parse_json(Path(path).read_text())
        return Beat(
            step=int(data["step"]),
            time=float(data["time"]),
            attempt=int(data["attempt"]),
            hostname=str(data.get("hostname", "")),
            pid=int(data.get("pid", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
