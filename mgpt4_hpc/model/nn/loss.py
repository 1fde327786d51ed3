"""Cross entropy of answer tokens without ever holding all logits.

Shapes: A answer tokens (those with a label), C of them at a time, D language width, V vocabulary, P
the same rounded up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mgpt4_hpc.model.architecture import LOGITS_AT_ONCE

CHUNK_TOKENS = {"cuda": LOGITS_AT_ONCE, "cpu": 128}
"""Rows of logits held at once, by device. On a GPU 1024 x 32000 in float32 are 125 MiB, and no
product is slower for it; a CPU is 10% faster (16 bits: 30%) with rows that stay in its cache."""

_FP16_LIFT = 256.0
"""Keeps a probability of 1 / 32000 out of fp16's subnormals; a power of two rounds nothing."""

_ALIGNED = 8
"""Products and rows of logits have sizes that divide by this, but for a rest: Vicuna's 32,001
tokens are odd, and the kernels for odd sizes take three times as long."""


def answer_loss_sum(
    hidden_AD: torch.Tensor,
    labels_A: torch.Tensor,
    output_layer: nn.Module,
    *,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """Sum of the answer tokens' cross entropies: float32 scalar, differentiable in ``hidden_AD``.

    ``hidden_AD[a]`` predicts ``labels_A[a]``. The output layer is frozen, so a chunk's gradient is
    known as soon as its probabilities are: it is computed on the spot, and the logits are thrown
    away instead of being kept or computed twice. Memory does not grow with tokens x vocabulary.
    """
    assert isinstance(output_layer, nn.Linear)
    if chunk_tokens is None:
        chunk_tokens = CHUNK_TOKENS.get(hidden_AD.device.type, LOGITS_AT_ONCE)
    wants_gradient = torch.is_grad_enabled() and hidden_AD.requires_grad
    loss: torch.Tensor = _FrozenHeadLoss.apply(
        hidden_AD, labels_A, output_layer.weight, output_layer.bias, chunk_tokens, wants_gradient
    )
    return loss


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_AD: torch.Tensor,
        labels_A: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        chunk_tokens: int,
        wants_gradient: bool,
    ) -> torch.Tensor:
        """Sum of the tokens' losses (float32); keeps its gradient by ``hidden_AD``."""
        gradients = []
        total = torch.zeros((), dtype=torch.float32, device=hidden_AD.device)
        vocabulary = len(weight_VD)
        rows = _rows_at_once(len(labels_A), chunk_tokens)
        table_CP = hidden_AD.new_empty(rows, -(-vocabulary // _ALIGNED) * _ALIGNED)
        for start in range(0, len(labels_A), rows):
            part = slice(start, start + rows)
            labels_C = labels_A[part]
            logits_CV = table_CP[: len(labels_C), :vocabulary]
            _logits(hidden_AD[part], weight_VD, bias_V, logits_CV)
            total += _losses(logits_CV, labels_C, wants_gradient)
            if wants_gradient:
                gradients.append(_product(logits_CV, weight_VD))
        if wants_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else hidden_AD.new_zeros(0))
            ctx.shape = hidden_AD.shape
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept gradient times ``grad``; the head is frozen and has none."""
        (gradient_AD,) = ctx.saved_tensors
        gradient_AD = gradient_AD.view(ctx.shape) * (grad / _lift(gradient_AD.dtype))
        return gradient_AD, None, None, None, None, None


def _rows_at_once(num_rows: int, most: int) -> int:
    """At most ``most``, such that chunks are equal: a rest of few rows costs as much as many."""
    num_chunks = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // num_chunks))


def _logits(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    logits_CV: torch.Tensor,
) -> None:
    for columns in _columns(len(weight_VD)):
        torch.mm(hidden_CD, weight_VD[columns].t(), out=logits_CV[:, columns])
    if bias_V is not None:
        logits_CV += bias_V


def _losses(logits_CV: torch.Tensor, labels_C: torch.Tensor, wants_gradient: bool) -> torch.Tensor:
    """Sum of the losses; leaves their gradient, lifted, where the logits were."""
    logs_CV = nn.functional.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    loss = -logs_CV.gather(1, labels_C.unsqueeze(1)).sum()
    if wants_gradient:
        difference_CV = logs_CV.exp_()  # probabilities, less one at the label
        rows_C = torch.arange(len(labels_C), device=labels_C.device)
        minus_one = torch.full((), -1.0, device=labels_C.device)
        difference_CV.index_put_((rows_C, labels_C), minus_one, accumulate=True)
        lift = _lift(logits_CV.dtype)
        if lift != 1.0:
            difference_CV.mul_(lift)
        logits_CV.copy_(difference_CV)
    return loss


def _product(difference_CV: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """``difference_CV @ weight_VD``."""
    first, *rest = _columns(len(weight_VD))
    product_CD = difference_CV[:, first] @ weight_VD[first]
    for columns in rest:
        product_CD.addmm_(difference_CV[:, columns], weight_VD[columns])
    return product_CD


def _columns(vocabulary: int) -> list[slice]:
    """The vocabulary as an aligned part and the few tokens beyond it."""
    aligned = vocabulary // _ALIGNED * _ALIGNED
    parts = [slice(0, aligned), slice(aligned, vocabulary)]
    return [part for part in parts if part.stop > part.start]


def _lift(dtype: torch.dtype) -> float:
    return _FP16_LIFT if dtype == torch.float16 else 1.0
