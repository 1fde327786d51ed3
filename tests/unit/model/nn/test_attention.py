"""Attention of packed sequences, each way of computing it beside the formula itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgpt4_hpc.model.nn import attention

HEADS, WIDTH = 4, 8
LENGTHS = (5, 1, 9, 3)

Attention = Callable[..., torch.Tensor]


def by_the_formula(
    query_NHW: torch.Tensor, key_NHW: torch.Tensor, value_NHW: torch.Tensor
) -> torch.Tensor:
    """Causal softmax attention in each sequence, token by token."""
    outputs, start = [], 0
    for length in LENGTHS:
        for end in range(start + 1, start + length + 1):
            scores_HT = torch.einsum("hw,thw->ht", query_NHW[end - 1], key_NHW[start:end])
            weights_HT = (scores_HT * WIDTH**-0.5).softmax(dim=-1)
            outputs.append(torch.einsum("ht,thw->hw", weights_HT, value_NHW[start:end]))
        start += length
    return torch.stack(outputs)


def each_sequence(*qkv: torch.Tensor) -> torch.Tensor:
    starts_R1 = torch.tensor((0, *LENGTHS)).cumsum(0).int()
    return attention._each_sequence(*qkv, starts_R1, None)


def padded(*qkv: torch.Tensor) -> torch.Tensor:
    """What a GPU computes in float32, where its flash kernels have no place."""
    longest = max(LENGTHS)
    rows = [torch.arange(length) + row * longest for row, length in enumerate(LENGTHS)]
    packed = {"padded_N": torch.cat(rows), "num_rows": len(LENGTHS), "longest": longest}
    return attention._padded_sdpa(*qkv, None, packed)


@pytest.mark.parametrize("way", [each_sequence, padded])
@pytest.mark.parametrize("key_heads", [HEADS, HEADS // 2])
@pytest.mark.parametrize("plain_tokens", [0, 5, 256])
def test_outputs_and_gradients_are_the_formulas(
    way: Attention, key_heads: int, plain_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_PLAIN_TOKENS", plain_tokens)
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, WIDTH) for heads in (HEADS, key_heads, key_heads)]
    qkv = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    sent_back_NHW = torch.randn(shapes[0], generator=generator)
    query_NHW, *kv = qkv
    expected_NHW = by_the_formula(
        query_NHW, *(x_NKW.repeat_interleave(HEADS // key_heads, dim=1) for x_NKW in kv)
    )
    wanted = torch.autograd.grad(expected_NHW, qkv, sent_back_NHW)
    output_NHW = way(*qkv)
    torch.testing.assert_close(output_NHW, expected_NHW)
    for gradient, its in zip(
        torch.autograd.grad(output_NHW, qkv, sent_back_NHW), wanted, strict=True
    ):
        torch.testing.assert_close(gradient, its)


def test_a_cpu_attends_in_float32_and_answers_in_the_models_type() -> None:
    qkv = torch.randn(3, sum(LENGTHS), HEADS, WIDTH, dtype=torch.bfloat16).unbind()
    output_NHW = each_sequence(*qkv)
    assert output_NHW.dtype == torch.bfloat16
    exact_NHW = by_the_formula(*(x_NHW.float() for x_NHW in qkv))
    torch.testing.assert_close(output_NHW, exact_NHW.bfloat16(), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("capability", "flash"), [((7, 0), False), ((7, 5), False), ((8, 0), True)]
)
def test_flash_is_for_ampere_and_later(
    capability: tuple[int, int], flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for GPUs that are not here: torch's kernel raises on those before Ampere.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention._has_flash(torch.device("cuda", 0)) is flash
    assert attention._has_flash(torch.device("cpu")) is False
