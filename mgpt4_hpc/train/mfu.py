"""Model FLOPs utilisation: what the task needs per second, over what the GPU could do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.estimates.flops import step_flops

Utilisation = Callable[[Sequence[Batch], float], float | None]
"""From a rank's micro-batches of one step and the step's seconds; None where no peak is known."""

_PEAK_TFLOPS = {
    "H200": 989.5,
    "H100 PCIe": 756.0,
    "H100": 989.5,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "V100S": 130.0,
    "V100": 125.0,
}
"""Dense 16-bit tensor-core rates from NVIDIA's data sheets, by what the device's name holds and no
letter or digit follows: an RTX A4000 is no A40. The longer names stand first."""

_COUNTED_BY = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    }
)


def peak_flops_per_s(device_name: str, precision: str) -> float | None:
    """Data sheet's rate of 16-bit matrix products; None for float32 and for unknown devices."""
    if precision == "fp32":
        return None
    for part, tflops in _PEAK_TFLOPS.items():
        if re.search(rf"{part}(?![0-9A-Za-z])", device_name):
            return tflops * 1e12
    return None


def utilisation(
    architecture: Architecture,
    llm_config: Mapping[str, Any],
    device: torch.device,
    precision: str,
) -> Utilisation:
    """MFU of one rank as a function; it never reads from the device.

    Padding, what causal attention leaves out and what is computed twice do not count as needed.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops_per_s(name, precision)
    if not llm_config.keys() >= _COUNTED_BY:
        peak = None  # a model that names its sizes otherwise cannot be counted

    def fraction(micro_batches: Sequence[Batch], step_s: float) -> float | None:
        """MFU (0 to 1) of a step that took ``step_s`` seconds; None if it cannot be counted."""
        if peak is None or step_s <= 0:
            return None
        lengths = [
            int(length) for batch in micro_batches for length in batch.attention_mask_BT.sum(dim=1)
        ]
        flops = step_flops(
            architecture,
            llm_config,
            num_images=sum(len(b.images_NCHW) for b in micro_batches if b.features_NIQ is None),
            lengths=lengths,
            num_predicted=sum(batch.num_answer_tokens for batch in micro_batches),
        )
        return flops.needed / step_s / peak

    return fraction
