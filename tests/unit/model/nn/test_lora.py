"""Tests of ``model/nn/lora.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.nn.lora import add_lora, load_lora
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model

pytest.importorskip("peft")

SETTINGS = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj", "v_proj"), "seed": 1}


def built(vicuna, precision: str = "fp32", **changes):
    model = build_model(vicuna.bundle, ModelOptions(precision=precision))
    return model, add_lora(model.language_model, **(SETTINGS | changes))


def test_its_start_is_a_function_of_the_seed(vicuna) -> None:
    models = [build_model(vicuna.bundle).language_model for _ in range(3)]
    before = torch.random.get_rng_state()
    one = add_lora(models[0], **SETTINGS)
    assert torch.equal(before, torch.random.get_rng_state()), "nobody else's numbers are drawn"
    torch.manual_seed(6)
    same, other = add_lora(models[1], **SETTINGS), add_lora(models[2], **(SETTINGS | {"seed": 2}))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_unknown_layers_and_other_ranks_are_told(vicuna) -> None:
    with pytest.raises(WeightsError, match=r"lora\.target_modules"):
        built(vicuna, target_modules=("no_such_layer",))
    model, lora = built(vicuna)
    _, wider = built(vicuna, rank=8)
    with pytest.raises(WeightsError, match=r"the LoRA of run-x does not fit"):
        load_lora(model.language_model, wider, "run-x")
    load_lora(model.language_model, {k: torch.ones_like(p) for k, p in lora.items()}, "run-x")
    assert all((p == 1).all() for p in lora.values())
