"""The counters of a run, and how an attempt ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass
class TrainState:
    """All are in every checkpoint; the first two are all that is needed for the same weights.

    Attributes:
        step: optimizer steps completed.
        samples_seen: samples consumed over all ranks; the whole state of the data pipeline.
        samples_replaced: bad samples among them, for people.
        validated_step: step of the newest held-out loss; 0 if there is none.
        best_step, best_loss: of the lowest one.
        num_worse: held-out losses since then.
        best_scores: per suite of ``train.eval_suites`` step and value of its highest headline.
    """

    step: int = 0
    samples_seen: int = 0
    samples_replaced: int = 0
    validated_step: int = 0
    best_step: int = 0
    best_loss: float | None = None
    num_worse: int = 0
    best_scores: dict[str, tuple[int, float]] = field(default_factory=dict)

    def advance(self, samples: int, replaced: int = 0) -> None:
        """One more step is complete."""
        self.step += 1
        self.samples_seen += samples
        self.samples_replaced += replaced

    def validated(self, loss: float) -> bool:
        """Note the held-out loss of this step; whether it is the lowest so far."""
        self.validated_step = self.step
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_step, self.best_loss, self.num_worse = self.step, loss, 0
            return True
        self.num_worse += 1
        return False

    def scored(self, headlines: Mapping[str, float]) -> None:
        """Note each suite's headline at this step; of equal ones the newest is the best."""
        for suite, value in headlines.items():
            if suite not in self.best_scores or value >= self.best_scores[suite][1]:
                # A new dict: a save in the background may still write the one before.
                self.best_scores = {**self.best_scores, suite: (self.step, value)}


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
        reason: what asked for the stop, as ``SIGTERM``; of a finished run why it ended early, or
            empty.
        attempt: number of this attempt.
        num_worse: as :class:`TrainState` has it.
    """

    ending: Ending
    step: int
    restored_step: int
    durable_step: int | None
    reason: str
    attempt: int
    num_worse: int = 0

    @property
    def finished_at(self) -> dict[str, int | str]:
        """What the ledger records of a finished run, to find later whether it may continue."""
        if self.ending is not Ending.FINISHED:
            return {}
        return {"all_steps": self.step, "num_worse": self.num_worse, "early": self.reason}
