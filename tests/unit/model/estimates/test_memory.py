"""Tests of ``model/estimates/memory.py``."""

from __future__ import annotations

import time

import pytest

from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER
from mgpt4_hpc.model.estimates import memory
from mgpt4_hpc.model.tower_shapes import connector_shapes, projector_shapes, vision_shapes
from tests.support.planned_model import plan_model

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


@pytest.mark.parametrize(
    ("arch", "config", "trainable"),
    [
        (EVA_G_QFORMER, LLAMA_7B, 3_149_824),
        (EVA_G_QFORMER, LLAMA_13B, 3_937_280),
        (EVA_G_PATCHES, LLAMA_7B, 23_072_768),
    ],
    ids=["vicuna-7b", "vicuna-13b", "llama2-7b"],
)
def test_full_size_models_are_planned_without_memory(arch, config: dict, trainable: int) -> None:
    start = time.perf_counter()
    model = plan_model(arch.with_llm_dim(config["hidden_size"]), config)
    assert time.perf_counter() - start < 10
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.vision.parameters()) == 985_894_528
    for module, shapes in (
        (model.vision, vision_shapes(arch)),
        (model.connector, connector_shapes(arch)),
        (model.llama_proj, projector_shapes(arch, config["hidden_size"])),
    ):
        assert {k: tuple(t.shape) for k, t in module.state_dict().items()} == shapes
    llm_parameters = sum(p.numel() for p in model.language_model.parameters())
    llm = memory.LlmSizes(config, llm_parameters)
    estimate = memory.estimate_memory(model.architecture, llm, micro_batch_size=12, text_tokens=191)
    assert 14 < estimate.total < 60
    smaller = memory.estimate_memory(
        model.architecture,
        llm,
        micro_batch_size=12,
        text_tokens=191,
        activation_checkpointing=True,
    )
    assert smaller.weights == estimate.weights and smaller.activations < estimate.activations / 5
    sharded = memory.estimate_memory(
        model.architecture,
        llm,
        micro_batch_size=12,
        text_tokens=191,
        sharded_over=4,
    )
    layers = list(model.language_model.model.layers.parameters())
    in_layers = 2 * sum(p.numel() for p in layers) / memory.GIB
    saved = in_layers * (3 / 4 - 2 / config["num_hidden_layers"])
    assert estimate.weights - sharded.weights == pytest.approx(saved, rel=1e-4)


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
