"""One optimizer step: forward and backward of each micro-batch, one reduction, one update.

Shapes: B batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.train.device import strict_determinism
from mgpt4_hpc.train.optimizer import set_lr

_FP16_START_SCALE = 2.0**16  # torch.amp.GradScaler's default, which the original used
_FP16_GROWTH_INTERVAL = 2000


@dataclass
class StepResult:
    """What one step left on the device; reading it costs a synchronisation.

    Attributes:
        loss_sum: cross entropy summed over this rank's answer tokens.
        num_tokens: answer tokens of this rank.
        grad_norm: norm of the global gradient before clipping.
    """

    loss_sum: torch.Tensor
    num_tokens: int
    grad_norm: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step computes beside the model's loss.

    Attributes:
        world_size: ranks that train together.
        fp16: scale the loss, as float16 gradients underflow.
        loss_reduction: ``global_tokens`` or ``rank_mean``, see ``TrainStep``.
        max_grad_norm: clip to it; 0 does not clip.
        num_passes: most micro-batches of any rank if all must compute equally often; else 0.
    """

    world_size: int = 1
    fp16: bool = False
    loss_reduction: str = "global_tokens"
    max_grad_norm: float = 0.0
    num_passes: int = 0


class TrainStep:
    """Forward, backward, update.

    The loss is the mean over the answer tokens of the *global* batch, whatever its slicing into
    ranks and micro-batches: each micro-batch contributes its sum over the global count, and DDP's
    averaging over ranks is multiplied out. ``rank_mean`` instead averages each micro-batch over
    its own tokens and does not divide by the accumulation, which is what the original does.

    A loss or gradient that is not finite skips the update on the device (fused AdamW's
    ``found_inf``) and is counted there, asynchronously. With fp16 the loss scale is searched
    by overflowing now and then: those steps are skipped too, but counted by themselves, as they
    say nothing about the training.

    With a sharded language model all ranks must compute it equally often: ``num_passes`` is the
    largest number of micro-batches that any of them has in a step.
    """

    def __init__(
        self,
        model: MiniGPT4,
        projector: nn.Module,
        optimizer: torch.optim.AdamW,
        schedule: Callable[[int], float],
        options: StepOptions,
        *,
        device: torch.device,
    ) -> None:
        self.model = model
        self.projector = projector
        self.optimizer = optimizer
        self.schedule = schedule
        self.options = options
        self.device = device
        self.loss_scale = torch.full((), _FP16_START_SCALE if options.fp16 else 1.0, device=device)
        self.growth_tracker = torch.zeros((), dtype=torch.int32, device=device)
        self.nonfinite_steps = torch.zeros((), device=device)
        self.overflow_steps = torch.zeros((), device=device)
        self._parameters = [p for p in projector.parameters() if p.requires_grad]

    def __call__(self, micro_batches: Sequence[Batch], step: int, global_tokens: int) -> StepResult:
        """Train on one global batch's slice.

        Args:
            micro_batches: this rank's part, at least one.
            step: optimizer steps completed so far.
            global_tokens: answer tokens of the whole global batch.
        """
        set_lr(self.optimizer, self.schedule(step))
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self.device)
        for _ in range(self.options.num_passes - len(micro_batches)):
            with self._without_reduction():
                self.model.idle_loss(self.projector).backward()
        last = len(micro_batches) - 1
        for number, batch in enumerate(micro_batches):
            with self._without_reduction() if number < last else nullcontext():
                loss_sum += self._backward(batch, global_tokens)
        grad_norm = self._update()
        return StepResult(loss_sum, sum(b.num_answer_tokens for b in micro_batches), grad_norm)

    def _without_reduction(self) -> Any:
        if isinstance(self.projector, DistributedDataParallel):
            return self.projector.no_sync()
        return nullcontext()

    def _backward(self, batch: Batch, global_tokens: int) -> torch.Tensor:
        loss_sum = forward_loss(self.model, batch, self.device, self.projector)
        if self.options.loss_reduction == "rank_mean":
            weight = 1.0 / max(batch.num_answer_tokens, 1)
        else:
            weight = self.options.world_size / max(global_tokens, 1)
        # A loss can be infinite and its gradient finite (a label's logit at -inf). Times zero it is
        # NaN then, and with it the gradient of all ranks.
        poison = loss_sum.detach() * 0.0
        with strict_determinism():
            (loss_sum * (weight * self.loss_scale + poison)).backward()
        return loss_sum.detach()

    def _update(self) -> torch.Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.options.fp16:
            torch._foreach_div_(gradients, self.loss_scale)
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if self.options.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self._parameters, self.options.max_grad_norm, grad_norm
            )
        found_inf = (~torch.isfinite(grad_norm)).float()
        # The attributes that torch.amp.GradScaler hands a fused optimizer.
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        overflow = found_inf * (self.loss_scale > 1.0)
        self.overflow_steps += overflow
        self.nonfinite_steps += found_inf - overflow
        if self.options.fp16:
            torch._amp_update_scale_(
                self.loss_scale, self.growth_tracker, found_inf, 2.0, 0.5, _FP16_GROWTH_INTERVAL
            )
        return grad_norm

    def scaler_tensors(self) -> dict[str, torch.Tensor]:
        """What must survive a requeue beside projector and optimizer."""
        return {
            "scaler.loss_scale": self.loss_scale,
            "scaler.growth_tracker": self.growth_tracker,
            "scaler.nonfinite_steps": self.nonfinite_steps,
            "scaler.overflow_steps": self.overflow_steps,
        }

    def load_scaler_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Inverse of :meth:`scaler_tensors`; absent tensors keep their start values."""
        for name, own in self.scaler_tensors().items():
            if name in tensors:
                own.copy_(tensors[name])


def forward_loss(
    model: MiniGPT4, batch: Batch, device: torch.device, projector: nn.Module | None = None
) -> torch.Tensor:
    """Cross entropy of ``batch``, summed over its answer tokens; float32 scalar."""
    # Only the pixels go to the device here: the model counts tokens on the CPU, without waiting.
    if batch.features_NIQ is not None:
        # In float32 as the towers leave them: whatever they were rounded to for storage, the
        # projector rounds them as it would have.
        encoded: torch.Tensor = model.answer_loss_of_features(
            batch.features_NIQ.to(device, non_blocking=True).float(),
            batch.input_ids_BT,
            batch.image_mask_BT,
            batch.labels_BT,
            projector=projector,
        )
        return encoded
    loss: torch.Tensor = model.answer_loss(
        normalise(batch.images_NCHW, device),
        batch.input_ids_BT,
        batch.image_mask_BT,
        batch.labels_BT,
        projector=projector,
    )
    return loss
