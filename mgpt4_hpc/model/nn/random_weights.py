"""A model of any size with random weights, made where it will compute: to measure, not to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.nn.connector import build_connector
from mgpt4_hpc.model.nn.language import build_language_model
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.performance.activation_checkpointing import recompute_layers
from mgpt4_hpc.model.nn.precision import cast_matmul_weights, compute_dtype
from mgpt4_hpc.model.nn.vision import build_vision

_QUERY_STD = 0.02
"""BERT's ``initializer_range``, which BLIP-2's query tokens start from."""


def random_model(
    arch: Architecture,
    llm_config: Mapping[str, Any],
    *,
    precision: str = "fp32",
    attention: str = "packed",
    device: torch.device | str = "cpu",
    activation_checkpointing: float = 0.0,
) -> MiniGPT4:
    """What ``build_model`` gives, without any file. Nothing is made elsewhere and then moved.

    Args:
        arch: sizes; ``llm_dim`` is taken from ``llm_config``.
        llm_config: values of the language model's ``config.json``, ``model_type`` among them.
        precision: as in ``build_model``.
        attention: as in ``build_model``.
        device: where it is made and stays.
        activation_checkpointing: as in ``build_model``.

    Raises:
        WeightsError: for an unknown precision.
    """
    if arch.llm_dim not in (None, llm_config["hidden_size"]):
        raise WeightsError(
            f"the architecture is for a width of {arch.llm_dim}, not {llm_config['hidden_size']}"
        )
    dtype = compute_dtype(precision)
    with torch.device(device):
        vision = build_vision(arch, attention=attention)
        connector = build_connector(arch, attention=attention)
        if arch.qformer:
            torch.nn.init.normal_(connector.get_parameter("query_tokens"), std=_QUERY_STD)
        for tower in (vision, connector):
            cast_matmul_weights(tower, dtype)
        language_model = build_language_model(dict(llm_config), dtype=dtype, attention=attention)
        recompute_layers(language_model, activation_checkpointing)
        arch = arch.with_llm_dim(llm_config["hidden_size"])
        return MiniGPT4(arch, vision, connector, language_model, dtype)
