"""AdamW around the projector, and its state as flat named tensors.

The state is stored by parameter name in safetensors, not as PyTorch's indexed dictionary, so
that no pickle is needed and another order of parameters cannot mix it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.errors import CheckpointError

Trained = nn.Module | Mapping[str, nn.Parameter]
"""What is trained: a module, or parameters by name where they lie in several modules."""

_SLOTS = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(trained: Trained, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``trained``.

    Biases and vectors are not decayed, as in the original. The fused kernel reads a ``found_inf``
    flag on the device, which lets a broken step be skipped without asking the host.
    """
    named = [(name, p) for name, p in _named(trained) if p.requires_grad]
    decayed = [p for _, p in named if p.ndim > 1]
    plain = [p for _, p in named if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, trained: Trained) -> dict[str, torch.Tensor]:
    """State as ``{"exp_avg.weight": ..., "step.bias": ...}``, empty before the first step."""
    tensors = {}
    for name, parameter in _named(trained):
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{slot}.{name}"] = value.detach()
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.AdamW, trained: Trained, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Inverse of :func:`optimizer_tensors`.

    Raises:
        CheckpointError: if a parameter's state is incomplete or of another shape.
    """
    for name, parameter in _named(trained):
        if not parameter.requires_grad:
            continue
        state = {}
        for slot in _SLOTS:
            value = tensors.get(f"{slot}.{name}")
            if value is None:
                raise CheckpointError(
                    f"the checkpoint's optimizer state lacks {slot}.{name}",
                    fix="resume from an older checkpoint, or start a new run from this projector",
                )
            expected = torch.Size([]) if slot == "step" else parameter.shape
            if value.shape != expected:
                raise CheckpointError(
                    f"the checkpoint's {slot}.{name} has shape {tuple(value.shape)}, "
                    f"the model needs {tuple(expected)}",
                    fix="the checkpoint is of another model: check model.weights",
                )
            state[slot] = value.to(device=parameter.device, dtype=torch.float32).clone()
        optimizer.state[parameter] = state


def _named(trained: Trained) -> Iterable[tuple[str, nn.Parameter]]:
    return trained.items() if isinstance(trained, Mapping) else trained.named_parameters()


def set_lr(optimizer: torch.optim.AdamW, lr: float) -> None:
    """Give every group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr
