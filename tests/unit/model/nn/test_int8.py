"""The language model in 8 bits: near enough, trainable through, and a clear message without it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model


def test_the_message_where_it_is_not_installed(vicuna, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "mgpt4_hpc.model.nn.int8.find_spec",
        lambda name: None if name == "bitsandbytes" else find_spec(name),
    )
    with pytest.raises(WeightsError, match=r"model\.llm_8bit needs bitsandbytes") as caught:
        build_model(vicuna.bundle, ModelOptions(llm_8bit=True))
    assert "mgpt4-hpc[int8]" in caught.value.fix


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_and_gradients_stay_near(vicuna, precision: str, device: str) -> None:
    pytest.importorskip("bitsandbytes")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    batch = {name: tensor.to(device) for name, tensor in vicuna.batch("stage2").items()}
    found = []
    for llm_8bit in (False, True):
        model = build_model(
            vicuna.bundle, ModelOptions(precision=precision, llm_8bit=llm_8bit), device=device
        ).train()
        projection = model.language_model.model.layers[0].self_attn.q_proj
        assert (projection.weight.dtype == torch.int8) == llm_8bit
        loss = model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()
        loss.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {
            "llama_proj.weight",
            "llama_proj.bias",
        }
        found.append((loss.item(), model.llama_proj.weight.grad))
    (exact, gradient), (rounded, rounded_gradient) = found
    assert rounded == pytest.approx(exact, rel=0.02) and rounded != exact
    assert (rounded_gradient - gradient).norm() / gradient.norm() < 0.15


def test_lora_beside_8_bit(vicuna) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from mgpt4_hpc.model.nn.lora import add_lora

    model = build_model(vicuna.bundle, ModelOptions(precision="bf16", llm_8bit=True))
    lora = add_lora(model.language_model, rank=2, alpha=4.0, target_modules=("q_proj",), seed=0)
    model.answer_loss(**vicuna.batch("stage1")).backward()
    assert lora and all(p.grad is not None and p.dtype == torch.float32 for p in lora.values())
