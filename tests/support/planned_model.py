"""A model of full size without memory: its shapes, types and counts."""

from __future__ import annotations

import torch

from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.nn.connector import build_connector
from mgpt4_hpc.model.nn.language import build_language_model
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.precision import cast_matmul_weights, compute_dtype
from mgpt4_hpc.model.nn.vision import build_vision


def plan_model(arch: Architecture, llm_config: dict[str, object]) -> MiniGPT4:
    """The model on the meta device, in bfloat16; ``arch`` has an ``llm_dim``."""
    dtype = compute_dtype("bf16")
    with torch.device("meta"):
        vision, connector = build_vision(arch), build_connector(arch)
        for tower in (vision, connector):
            cast_matmul_weights(tower, dtype)
        language_model = build_language_model(llm_config, dtype=dtype, attention="sdpa")
        return MiniGPT4(arch, vision, connector, language_model, dtype)
