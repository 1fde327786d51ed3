"""Tests of ``model/nn/performance/activation_checkpointing.py``."""

from __future__ import annotations

import torch

from mgpt4_hpc.model.nn.language import trunk
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model


def test_only_a_part_of_the_layers_is_recomputed(vicuna) -> None:
    from mgpt4_hpc.model.nn.performance.activation_checkpointing import recompute_layers

    for part, number in ((0.0, 0), (0.5, 1), (1.0, 2)):
        model = build_model(vicuna.bundle)
        layers = trunk(model.language_model).layers
        assert recompute_layers(model.language_model, part) == number * len(layers) // 2
        calls: list[int] = []
        for layer in layers:
            layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.answer_loss(**vicuna.batch("stage1")).backward()
        assert len(calls) == len(layers) + number * len(layers) // 2


def mean_loss(model, batch) -> torch.Tensor:
    return model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()


def test_activation_checkpointing_recomputes_and_changes_nothing(vicuna) -> None:
    model = build_model(vicuna.bundle, ModelOptions(activation_checkpointing=True))
    calls = []
    layer = model.language_model.model.layers[0].self_attn
    layer.register_forward_hook(lambda *_: calls.append(1))
    batch = vicuna.batch("stage2")
    mean_loss(model, batch).backward()
    assert len(calls) == 2, "once forward, once more in the backward pass"
    mean_loss(vicuna.model, batch).backward()
    torch.testing.assert_close(model.llama_proj.weight.grad, vicuna.model.llama_proj.weight.grad)
