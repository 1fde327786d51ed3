"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mgpt4_hpc.config.schema import TrainConfig


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then a cosine over *all* of ``lr_steps``, then ``min_lr``.

    The original's ``LinearWarmupCosineLRScheduler``: the cosine is not shifted by the warm-up, so
    right after it the rate is already below its peak (1e-4 becomes 9.71e-5 at step 5,000 of
    20,000). The original restarts its warm-up in each epoch that is shorter than it; its own
    settings never are, and this schedule knows no epochs.
    """

    lr: float
    min_lr: float
    warmup_start_lr: float
    warmup_steps: int
    lr_steps: int

    @classmethod
    def from_config(cls, config: TrainConfig) -> WarmupCosine:
        """Schedule of one run."""
        return cls(
            config.lr,
            config.min_lr,
            config.warmup_start_lr,
            config.warmup_steps,
            config.cosine_steps,
        )

    def __call__(self, step: int) -> float:
        """Learning rate of the update that follows ``step`` completed ones."""
        if step < self.warmup_steps:
            risen = (
                self.warmup_start_lr + (self.lr - self.warmup_start_lr) * step / self.warmup_steps
            )
            return min(self.lr, risen)
        done = min(step, self.lr_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * done / self.lr_steps))
        return self.min_lr + (self.lr - self.min_lr) * cosine
