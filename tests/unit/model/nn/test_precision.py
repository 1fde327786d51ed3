"""Tests of ``model/nn/precision.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model


def mean_loss(model, batch) -> torch.Tensor:
    return model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_within_two_percent(reference, precision: str) -> None:
    model = build_model(reference.bundle, ModelOptions(precision=precision))
    for stage in ("stage1", "stage2"):
        loss = mean_loss(model, reference.batch(stage))
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(reference.expected[f"{stage}.loss"], rel=0.02)
    assert {p.dtype for p in model.llama_proj.parameters()} == {torch.float32}
    assert {p.dtype for p in model.language_model.parameters()} == {model.dtype}
    gradient = model.llama_proj.weight.grad
    assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.any()


def test_unknown_precision_is_named(vicuna) -> None:
    with pytest.raises(WeightsError, match="'float8'"):
        build_model(vicuna.bundle, ModelOptions(precision="float8"))
