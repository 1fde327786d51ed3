"""LoRA beside the projector: off by default, a function of the seed, trained and nothing else."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.nn.lora import add_lora
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
from mgpt4_hpc.train.ddp import wrap_projector

pytest.importorskip("peft")

SETTINGS = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj", "v_proj"), "seed": 1}


def built(vicuna, precision: str = "fp32", **changes):
    model = build_model(vicuna.bundle, ModelOptions(precision=precision))
    return model, add_lora(model.language_model, **(SETTINGS | changes))


@pytest.mark.slow
def test_nothing_changes_at_first(vicuna) -> None:
    model, lora = built(vicuna)
    batch = vicuna.batch("stage2")
    step, plain = vicuna.step("stage2"), build_model(vicuna.bundle)
    pixels = vicuna.tensors["stage2.images"]
    tokens = (batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT)
    assert torch.equal(model.answer_loss(pixels, *tokens), plain.answer_loss(pixels, *tokens))
    assert step.model.model.language_model is not model.language_model
    layers = len({name.split(".lora_")[0] for name in lora})
    assert layers == 2 * model.language_model.config.num_hidden_layers
    assert len(lora) == 2 * layers and {p.dtype for p in lora.values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_projector_and_lora_get_gradients(vicuna, precision: str) -> None:
    model, lora = built(vicuna, precision)
    batch = vicuna.batch("stage2")
    pixels = vicuna.tensors["stage2.images"]
    model.answer_loss(pixels, batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT).backward()
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(p) for p in (*model.llama_proj.parameters(), *lora.values())}
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in lora.values())
    assert any(p.grad.any() for p in lora.values())


def test_a_batch_without_labels_still_reaches_every_parameter(vicuna) -> None:
    model, lora = built(vicuna)
    batch = vicuna.batch("stage1")
    nothing = torch.full_like(batch.labels_BT, -100)
    pixels = vicuna.tensors["stage1.images"]
    loss = model.answer_loss(pixels, batch.input_ids_BT, batch.image_mask_BT, nothing)
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in lora.values())


def test_the_wrapper_is_the_projector_and_owns_both(vicuna) -> None:
    model, lora = built(vicuna)
    wrapped = wrap_projector(model.llama_proj, torch.device("cpu"), 1, list(lora.values()))
    features = torch.randn(2, 3, model.llama_proj.in_features)
    assert torch.equal(wrapped(features), model.llama_proj(features))
    assert len(list(wrapped.parameters())) == 2 + len(lora)
    assert wrap_projector(model.llama_proj, torch.device("cpu"), 1) is model.llama_proj


def test_settings(monkeypatch: pytest.MonkeyPatch, vicuna) -> None:
    assert load_config("stage1-vicuna7b").config.lora.rank == 0
    with pytest.raises(ConfigError, match="lm_head, which stay frozen"):
        load_config("stage1-vicuna7b", overrides={"lora.target_modules": ["lm_head"]})
    with pytest.raises(ConfigError, match="has no LoRA"):
        load_config("stage1-vicuna7b", overrides={"lora.rank": 8, "faithful": True})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "mgpt4_hpc.model.nn.lora.find_spec",
        lambda name: None if name == "peft" else find_spec(name),
    )
    with pytest.raises(WeightsError, match="peft is not installed") as caught:
        built(vicuna)
    assert "mgpt4-hpc[lora]" in caught.value.fix
