"""Activation checkpointing of the frozen language model: recompute its layers in the backward pass.

transformers' own switch is silently ignored in eval mode, which a frozen model must stay in (its
dropout would come on). So each layer's forward is wrapped here instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mgpt4_hpc.errors import WeightsError


def recompute_layers(model: nn.Module, part: float = 1.0) -> int:
    """Wrap ``part`` of a transformers model's repeated layers; returns how many.

    The last layers stay as they are: their backward pass comes first, when memory is fullest, and
    a layer recomputed then would add its inside to everything that is kept.

    Raises:
        WeightsError: if the model has no layers that transformers marks as repeatable.
    """
    if part <= 0.0:
        return 0
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise WeightsError(
            f"{type(model).__name__} has no layers whose activations can be recomputed",
            fix="switch activation checkpointing off",
        )
    chosen = layers[: math.ceil(part * len(layers))]
    for layer in chosen:
        _wrap(layer)
    return len(chosen)


def _wrap(layer: nn.Module) -> None:
    forward = layer.forward

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        """The layer's forward; in training its activations are recomputed in the backward pass."""
        # Generation has no backward pass, and its cache must not be written twice.
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    layer.forward = recomputing
