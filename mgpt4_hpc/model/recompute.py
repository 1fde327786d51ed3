"""Activation checkpointing of the frozen language model: recompute its layers in the backward pass.

transformers' own switch is silently ignored in eval mode, which a frozen model must stay in (its
dropout would come on). So each layer's forward is wrapped here instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mgpt4_hpc.errors import WeightsError


def recompute_layers(model: nn.Module) -> int:
    """Wrap every repeated layer of a transformers model; returns how many.

    Raises:
        WeightsError: if the model has no layers that transformers marks as repeatable.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise WeightsError(
            f"{type(model).__name__} has no layers whose activations can be recomputed",
            fix="switch activation checkpointing off",
        )
    for layer in layers:
        _wrap(layer)
    return len(layers)


def _wrap(layer: nn.Module) -> None:
    forward = layer.forward

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        # Generation has no backward pass, and its cache must not be written twice.
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    layer.forward = recomputing
