"""Shapes of the full-size models, without their memory."""

from __future__ import annotations

import time

import pytest

from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER
from mgpt4_hpc.model.estimates import memory
from mgpt4_hpc.model.tower_shapes import connector_shapes, projector_shapes, vision_shapes
from tests.support.planned_model import plan_model
from tests.unit.model.estimates.sizes import LLAMA_7B

LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


@pytest.mark.slow
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
    start = time.process_time()
    model = plan_model(arch.with_llm_dim(config["hidden_size"]), config)
    assert time.process_time() - start < 10
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
