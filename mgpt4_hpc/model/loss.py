"""Cross entropy of answer tokens without ever holding all logits.

Shapes: B batch, T tokens, D language width, A answer tokens (those with a label), K vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mgpt4_hpc.model.memory import LOGITS_AT_ONCE

IGNORED = -100
"""Label of a token that is not learned, as everywhere in torch and transformers."""

CHUNK_TOKENS = LOGITS_AT_ONCE
"""Logits held at once: 1024 x 32000 in float32 is 125 MiB, and no product is slower for it."""


def answer_loss_sum(
    hidden_BTD: torch.Tensor,
    labels_BT: torch.Tensor,
    output_layer: nn.Module,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> torch.Tensor:
    """Sum of the answer tokens' cross entropies: float32 scalar, differentiable in ``hidden_BTD``.

    ``labels_BT[b, t]`` is the token at t itself; the shift (position t - 1 predicts it) is made
    here. A label at t = 0 has nothing to be predicted from and is ignored. More than one chunk is
    recomputed in the backward pass, so that memory does not grow with tokens x vocabulary.
    """
    wanted_BT = labels_BT[:, 1:] != IGNORED
    hidden_AD = hidden_BTD[:, :-1][wanted_BT]
    labels_A = labels_BT[:, 1:][wanted_BT]
    if len(labels_A) <= chunk_tokens:
        return _chunk_loss(hidden_AD, labels_A, output_layer)
    total = hidden_AD.new_zeros((), dtype=torch.float32)
    for start in range(0, len(labels_A), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(
            _chunk_loss, hidden_AD[part], labels_A[part], output_layer, use_reentrant=False
        )
    return total


def _chunk_loss(
    hidden_AD: torch.Tensor, labels_A: torch.Tensor, output_layer: nn.Module
) -> torch.Tensor:
    logits_AK = output_layer(hidden_AD).float()
    return nn.functional.cross_entropy(logits_AK, labels_A, reduction="sum")
