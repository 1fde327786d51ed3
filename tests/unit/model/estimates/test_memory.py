"""Tests of ``model/estimates/memory.py``."""

from __future__ import annotations

import pytest

from mgpt4_hpc.model.estimates import memory
from tests.unit.model.estimates.sizes import LLAMA_7B


def test_activations_are_those_that_autograd_keeps() -> None:
    """Count what one forward pass saves, and compare with the estimate."""
    import torch

    from mgpt4_hpc.model.nn.language import build_language_model, trunk

    config = LLAMA_7B | {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "vocab_size": 64}
    model = build_language_model(config, dtype=torch.bfloat16, attention="sdpa")
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeds = torch.randn(2, 64, 128, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = trunk(model)(inputs_embeds=embeds, use_cache=False)[0]
    assert output.requires_grad
    estimated = 2 * 64 * 4 * memory._layer_bytes_per_token(config, 128, 2)
    assert sum(saved.values()) == pytest.approx(estimated, rel=0.2)
