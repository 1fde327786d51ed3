"""The numeric types that a run computes in.

Half precision means: matrix multiplications of the frozen towers in 16 bits with 16-bit weights,
their residual streams and norms in float32 (as the original's autocast has it), the language
model in 16 bits throughout, the projector's parameters and the loss in float32.
"""

from __future__ import annotations

import torch
from torch import nn

from mgpt4_hpc.errors import WeightsError

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def choose_precision(wanted: str, device: torch.device) -> str:
    """Precision of the frozen towers, ``fp32``, ``bf16`` or ``fp16``, where it may be ``auto``."""
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def compute_dtype(precision: str) -> torch.dtype:
    """The type of matrix multiplications. Raises WeightsError for an unknown name."""
    try:
        return _DTYPES[precision]
    except KeyError:
        raise WeightsError(
            f"unknown precision {precision!r}", fix=f"use one of {', '.join(_DTYPES)}"
        ) from None


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to ``dtype`` on that device; switched off for float32, whatever surrounds it."""
    return (
        torch.autocast(device.type, dtype=dtype, enabled=True)
        if dtype != torch.float32
        else torch.autocast(device.type, enabled=False)
    )


def cast_matmul_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Linear and convolution weights to ``dtype``, every other parameter and buffer to float32."""
    for child in module.modules():
        target = dtype if isinstance(child, nn.Linear | nn.Conv2d) else torch.float32
        for name, parameter in child.named_parameters(recurse=False):
            setattr(child, name, nn.Parameter(parameter.detach().to(target), requires_grad=False))
        for name, buffer in child.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(child, name, buffer.to(target))
