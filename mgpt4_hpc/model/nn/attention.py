"""Attention over packed sequences, handed to transformers under a name of its own.

Shapes: N packed tokens, H query heads, K key heads, W head width, R sequences, T tokens of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.model.lazy import garbage_collector_off
from mgpt4_hpc.model.nn.performance.packing import Packed

PACKED = "mgpt4_packed"
"""What transformers knows the attention function below by."""

_PLAIN_TOKENS = 256
"""Longest sequence for which a CPU computes attention as plain products: up to there they take half
the time of torch's own kernel or less, at 700 tokens half as much again."""

PACKABLE_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the families that tests have seen packed: rotary positions, nothing else."""


def register() -> None:
    """Make ``PACKED`` known to transformers; harmless when repeated."""
    with garbage_collector_off():
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


def packed_arguments(packed: Packed, device: torch.device) -> dict[str, Any]:
    """What a language model with ``PACKED`` attention is called with beside its embeddings.

    The mask has four dimensions, which transformers uses as it is:
    otherwise it would look for the sequences in the positions, and build a mask of N x N.
    """
    return {
        "position_ids": packed.positions_N.unsqueeze(0),
        "attention_mask": torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device),
        "starts_R1": packed.starts_R1,
        "padded_N": packed.padded_N,
        "num_rows": packed.num_rows,
        "longest": packed.longest,
        "has_flash": _has_flash(device),
    }


def packed_attention(
    module: nn.Module,
    query_1HNW: torch.Tensor,
    key_1KNW: torch.Tensor,
    value_1KNW: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence; without packed sequences (generation) plain SDPA.

    ``kwargs`` are those of ``packed_arguments``, and others that transformers adds.
    """
    starts_R1 = kwargs.get("starts_R1")
    if starts_R1 is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module,
            query_1HNW,
            key_1KNW,
            value_1KNW,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,
        )
        return plain
    query_NHW, key_NKW, value_NKW = (
        x.squeeze(0).transpose(0, 1) for x in (query_1HNW, key_1KNW, value_1KNW)
    )
    if query_NHW.device.type == "cpu":
        output_NHW = _each_sequence(query_NHW, key_NKW, value_NKW, starts_R1, scaling)
    elif kwargs["has_flash"] and _flash_fits(query_NHW, key_NKW, scaling):
        output_NHW = _flash(query_NHW, key_NKW, value_NKW, starts_R1, kwargs["longest"])
    else:
        output_NHW = _padded_sdpa(query_NHW, key_NKW, value_NKW, scaling, kwargs)
    return output_NHW.unsqueeze(0), None


def _has_flash(device: torch.device) -> bool:
    """Whether the device can run torch's flash kernels: Ampere or later, so no V100 and no T4."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    _load_varlen_attention()
    return True


def _load_varlen_attention() -> None:
    """Import torch's attention over sequences of different lengths, where a GPU uses it.

    Its module imports torch._dynamo and sympy. Not where it is called, which may be compiled. The
    argument for causality changed between torch 2.10 and 2.12.
    """
    global _varlen_attn, _CAUSAL
    from torch.nn.attention import varlen

    _varlen_attn = varlen.varlen_attn
    has_window = "window_size" in inspect.signature(_varlen_attn).parameters
    _CAUSAL = {"window_size": (-1, 0)} if has_window else {"is_causal": True}


_varlen_attn: Callable[..., Any]
_CAUSAL: dict[str, Any]


def _flash_fits(query_NHW: torch.Tensor, key_NKW: torch.Tensor, scaling: float | None) -> bool:
    """Whether torch's kernel for sequences of different lengths computes just this."""
    width = query_NHW.shape[-1]
    return (
        query_NHW.dtype in (torch.bfloat16, torch.float16)
        and query_NHW.shape == key_NKW.shape
        and width % 8 == 0
        and width <= 256
        and (scaling is None or abs(scaling - width**-0.5) < 1e-9)
    )


def _flash(
    query_NHW: torch.Tensor,
    key_NHW: torch.Tensor,
    value_NHW: torch.Tensor,
    starts_R1: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    output_NHW = _varlen_attn(
        query_NHW, key_NHW, value_NHW, starts_R1, starts_R1, longest, longest, **_CAUSAL
    )
    assert isinstance(output_NHW, torch.Tensor)
    return output_NHW


def exclude_from_compilation() -> None:
    """Keep the compiler out of the CPU's attention: it would make a kernel per sequence count.

    Not a decorator: that imports torch._dynamo and sympy (4 s of CPU) in every run.
    """
    global _each_sequence
    _each_sequence = torch.compiler.disable(_each_sequence)


def _each_sequence(
    query_NHW: torch.Tensor,
    key_NKW: torch.Tensor,
    value_NKW: torch.Tensor,
    starts_R1: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """One sequence after the other, as a CPU likes it: no padding, and all of it in its cache.

    In float32 whatever the type: torch's 16-bit backward takes two to three times as long on a CPU
    as the conversions and the float32 one together.
    """
    lengths = starts_R1.diff().tolist()
    parts = (x_NHW.float().split(lengths) for x_NHW in (query_NHW, key_NKW, value_NKW))
    outputs = []
    for query_THW, key_TKW, value_TKW in zip(*parts, strict=True):
        short = len(query_THW) <= _PLAIN_TOKENS and query_THW.shape == key_TKW.shape
        attend = _plain if short else _sdpa
        output_HTW = attend(
            query_THW.transpose(0, 1), key_TKW.transpose(0, 1), value_TKW.transpose(0, 1), scaling
        )
        outputs.append(output_HTW.transpose(0, 1))
    return torch.cat(outputs).to(query_NHW.dtype)


def _plain(
    query_HTW: torch.Tensor, key_HTW: torch.Tensor, value_HTW: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Three products that keep their T x T weights for the backward pass."""
    length, width = query_HTW.shape[1:]
    scaling = width**-0.5 if scaling is None else scaling
    later_TT = query_HTW.new_full((length, length), -torch.inf).triu(1)
    scores_HTT = torch.baddbmm(later_TT, query_HTW, key_HTW.transpose(1, 2), alpha=scaling)
    return torch.bmm(scores_HTT.softmax(dim=-1), value_HTW)


def _sdpa(
    query_HTW: torch.Tensor, key_KTW: torch.Tensor, value_KTW: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Torch's own; its memory does not grow with T x T."""
    output_HTW: torch.Tensor = nn.functional.scaled_dot_product_attention(
        query_HTW.unsqueeze(0),
        key_KTW.unsqueeze(0),
        value_KTW.unsqueeze(0),
        is_causal=True,
        scale=scaling,
        enable_gqa=len(query_HTW) != len(key_KTW),
    ).squeeze(0)
    return output_HTW


def _padded_sdpa(
    query_NHW: torch.Tensor,
    key_NKW: torch.Tensor,
    value_NKW: torch.Tensor,
    scaling: float | None,
    packed: Mapping[str, Any],
) -> torch.Tensor:
    """Pad for attention alone, which is a small part of a layer, and gather the tokens again."""
    padded_N, num_rows, longest = packed["padded_N"], packed["num_rows"], packed["longest"]

    def pad(packed_NHW: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, width] to [rows, heads, longest, width], zeros behind each row."""
        heads, width = packed_NHW.shape[1:]
        table = packed_NHW.new_zeros(num_rows * longest, heads, width)
        table = table.index_copy(0, padded_N, packed_NHW)
        return table.view(num_rows, longest, heads, width).transpose(1, 2)

    output_RHTW = nn.functional.scaled_dot_product_attention(
        pad(query_NHW),
        pad(key_NKW),
        pad(value_NKW),
        is_causal=True,
        scale=scaling,
        enable_gqa=query_NHW.shape[1] != key_NKW.shape[1],
    )
    output_XHW = output_RHTW.transpose(1, 2).flatten(0, 1)
    return output_XHW.index_select(0, padded_N)
