"""The counters of a run, and how an attempt ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass
class TrainState:
    """All counters are in every checkpoint; the first two are all that is needed to go on exactly.

    Attributes:
        step: optimizer steps completed.
        samples_seen: samples consumed over all ranks; the whole state of the data pipeline.
        samples_replaced: bad samples among them, for people.
    """

    step: int = 0
    samples_seen: int = 0
    samples_replaced: int = 0

    def advance(self, samples: int, replaced: int = 0) -> None:
        """One more step is complete."""
        self.step += 1
        self.samples_seen += samples
        self.samples_replaced += replaced


class Ending(StrEnum):
    """How the loop was left."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Outcome:
    """What an attempt achieved.

    Attributes:
        ending: whether the run is complete.
        step: steps completed and saved.
        restored_step: where this attempt began.
        durable_step: step of the newest durable checkpoint, None if there is none.
        reason: what asked for the stop, as ``SIGTERM``; empty if finished.
        attempt: number of this attempt.
    """

    ending: Ending
    step: int
    restored_step: int
    durable_step: int | None
    reason: str
    attempt: int
