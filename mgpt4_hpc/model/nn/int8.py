"""The language model's matrices in 8 bits, by bitsandbytes (LLM.int8): half the memory of 16.

The original has it for its demo (``low_resource``). Gradients still pass through to the projector.
Matrices are rounded row by row, activations beyond six deviations are multiplied in 16 bits.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch

from mgpt4_hpc.errors import WeightsError

_PACKAGES = ("bitsandbytes", "accelerate")


def missing_packages() -> list[str]:
    """Which of the needed packages cannot be imported."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def eight_bit_arguments(device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` needs beside the rest to load straight into 8 bits on ``device``.

    Raises:
        WeightsError: if a package is missing or finds no kernels for this machine.
    """
    if missing := missing_packages():
        raise WeightsError(
            f"model.llm_8bit needs {' and '.join(missing)}",
            fix="pip install 'mgpt4-hpc[int8]', or --set model.llm_8bit=false",
        )
    try:
        import bitsandbytes  # noqa: F401 - it looks for its kernels when it is imported
    except Exception as error:
        raise WeightsError(
            f"bitsandbytes cannot be used here: {error}",
            why="it has no kernels for this machine's GPU driver or torch",
            fix="--set model.llm_8bit=false; `python -m bitsandbytes` says more",
        ) from error
    from transformers import BitsAndBytesConfig

    # It says at each product that bf16 is rounded to fp16 on the way to 8 bits, which is no news.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
        "device_map": {"": device},
    }
