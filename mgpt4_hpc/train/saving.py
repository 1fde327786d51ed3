"""Checkpoints as the loop sees them: due by clock or step, written in the background by rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mgpt4_hpc.checkpoint.interval import SaveInterval
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import CheckpointError, Overtaken
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.state import TrainState

Snapshot = Callable[[], dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class SavePolicy:
    """Which states are saved on the way, and which of them stay.

    Attributes:
        every_s: most seconds of work that a kill can cost.
        every_steps: multiples of any of these are saved.
        keep_best: the state that is best by the held-out loss or by a suite is saved, and kept
            until there is a better one.
    """

    every_s: float
    every_steps: tuple[int, ...] = ()
    keep_best: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> SavePolicy:
        """The policy of a run's settings."""
        kept = config.checkpoint
        every_steps = tuple(filter(None, (kept.save_every_steps, kept.keep_every_steps)))
        return cls(config.train.save_every_s, every_steps, kept.keep_best)

    def wants(self, state: TrainState) -> bool:
        """Whether this very state must be saved, whatever the clock says."""
        best = self._best_step(state)
        return 0 < best == state.step == state.validated_step or any(
            state.step % steps == 0 for steps in self.every_steps
        )

    def kept(self, state: TrainState) -> frozenset[int]:
        """Steps that no pruning removes, beside those of the store's own rules."""
        best = self._best_step(state)
        return frozenset({best} if best else ())

    def _best_step(self, state: TrainState) -> int:
        """0 if there is none, or none is kept."""
        if self.keep_best is None:
            return 0
        if self.keep_best == "val/loss":
            return state.best_step
        return state.best_scores.get(self.keep_best, (0, 0.0))[0]


class Saving:
    """The saving of ranks that do not save."""

    def start_clock(self) -> None:
        """Have no clock."""

    def save_if_due(self, state: TrainState) -> bool:
        """Save nothing."""
        return False

    def save_now(self, state: TrainState) -> None:
        """Save nothing."""

    @property
    def durable_step(self) -> int | None:
        """Not known on this rank."""
        return None

    @property
    def longest_s(self) -> float:
        """Not known on this rank."""
        return 0.0


class FirstRankSaving(Saving):
    """Rank 0's saving; the state is the same on every rank.

    Args:
        saver: writes in the background.
        snapshot: the tensors to save, as they are now.
        meta: of a state: what the manifest says beside the tensors.
        recorder: records stalls.
        policy: what to save, and when.
        restored_step: step that needs no saving, as it was loaded.
        longest_s: seconds of the longest save of earlier attempts; 0 if there was none.
    """

    def __init__(
        self,
        saver: AsyncSaver,
        snapshot: Snapshot,
        meta: Callable[[TrainState], dict[str, Any]],
        recorder: Recorder,
        *,
        policy: SavePolicy,
        restored_step: int | None,
        longest_s: float = 0.0,
    ) -> None:
        self.saver = saver
        self._snapshot = snapshot
        self._meta = meta
        self._recorder = recorder
        self._policy = policy
        self._interval = SaveInterval(policy.every_s, started_at=time.monotonic())
        self._restored_step = restored_step
        self._longest_s = longest_s

    def start_clock(self) -> None:
        """Begin to count: what passed until now was no training that could be lost."""
        self._interval = SaveInterval(self._policy.every_s, started_at=time.monotonic())

    def save_if_due(self, state: TrainState) -> bool:
        """Start a save if the interval has passed, or this step is wanted; whether it did.

        Costs the copy, never the disk, but for a step that is wanted while two are being written.

        Raises:
            Overtaken: an earlier save found that a newer attempt owns the run.
        """
        self._give_up_if_overtaken()
        now = time.monotonic()
        wanted = self._policy.wants(state)
        if not (wanted or self._interval.next_save_due(now)):
            return False
        # A disk slower than the interval must not hold the loop up: then that save is left out.
        taken = self._save(state, block=wanted)
        self._interval.saved(now, self.saver.last_stall_s or 0.0)
        return taken

    def _give_up_if_overtaken(self) -> None:
        # Every other failure may pass; this one never does, and training on would be for nothing.
        for failure in self.saver.failures[-1:]:
            if isinstance(failure.error, Overtaken):
                raise failure.error

    def _save(self, state: TrainState, *, block: bool = True) -> bool:
        meta, keep = self._meta(state), self._policy.kept(state)
        return self.saver.save(state.step, self._snapshot(), meta, block=block, keep=keep)

    def save_now(self, state: TrainState) -> None:
        """Save and wait until it is durable.

        Raises:
            CheckpointError: if this last save failed, twice: the run is not finished then.
            Overtaken: a newer attempt owns the run.
        """
        if state.step == 0:
            return  # a start from scratch is the same state, and AdamW has none yet
        self.saver.wait()
        for _ in range(2):
            if self.durable_step == state.step:
                return
            self._save(state)
            self.saver.wait()
            self._give_up_if_overtaken()
        if self.durable_step == state.step:
            return
        last = self.saver.failures[-1].error if self.saver.failures else "unknown"
        raise CheckpointError(
            f"the state of step {state.step} could not be saved: {last}",
            why=f"the newest durable checkpoint is of step {self.durable_step}",
            fix="make room or mend the storage, then `mgpt4 resume`",
        )

    @property
    def durable_step(self) -> int | None:
        """Step of the newest checkpoint that survives a power cut."""
        if self.saver.last_durable_step is not None:
            return self.saver.last_durable_step
        return self._restored_step

    @property
    def longest_s(self) -> float:
        """Seconds from asking for a save to having it on disk, of the longest one so far."""
        self._longest_s = max(self._longest_s, self.saver.last_save_s or 0.0)
        return self._longest_s
