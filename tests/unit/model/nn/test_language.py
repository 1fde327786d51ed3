"""Any causal language model trains and generates, not only LLaMA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.generation.generate import generate
from mgpt4_hpc.model.lazy import quiet_transformers
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.attention import PACKABLE_MODELS
from mgpt4_hpc.model.nn.language import runs_packed
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def folder_with(model_type: str, vicuna, tmp_path: Path, **changes) -> Path:
    """The reference's vision side and tokenizer before a random model of another family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / model_type
    shutil.copytree(vicuna.path, folder)
    (folder / "architecture.json").write_text(json.dumps(vicuna.architecture.to_dict()))
    (folder / "llm" / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | changes))
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    # Newer families ship a tokenizer.json and no SentencePiece file.
    (folder / "llm" / "tokenizer.model").unlink()
    vicuna.tokenizer._backend.save_pretrained(folder / "llm")
    settings = folder / "llm" / "tokenizer_config.json"
    changed = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(changed))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 32}),
        ("mistral", {}),
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
    ],
)
def test_trains_and_generates(model_type: str, changes: dict, vicuna, tmp_path: Path) -> None:
    bundle = open_bundle(folder_with(model_type, vicuna, tmp_path, **changes))
    model, tokenizer = build_model(bundle), load_tokenizer(bundle.llm_dir)
    batch = vicuna.batch("stage2")
    loss = model.answer_loss(**batch)
    loss.backward()
    assert model.llama_proj.weight.grad.any()
    whole = whole_logits_loss(model, batch)
    torch.testing.assert_close(loss, whole)
    size = bundle.architecture.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    prompts = ["<Img><ImageHere></Img> What is this?", "<Img><ImageHere></Img> Hi"]
    answers = generate(model, tokenizer, images, prompts, max_new_tokens=5)
    alone = generate(model, tokenizer, images[:1], prompts[1:], max_new_tokens=5)
    assert answers[1] == alone[0]


def whole_logits_loss(model, batch) -> torch.Tensor:
    """The family's own forward with labels, as a sum."""
    images = model.project(model.encode_images(batch["pixels_NCHW"]))
    embeds = model.embed(batch["input_ids_BT"], batch["image_mask_BT"], images)
    output = model.language_model(inputs_embeds=embeds, labels=batch["labels_BT"])
    return output.loss * (batch["labels_BT"][:, 1:] != -100).sum()


def test_altered_logits_are_refused(vicuna, tmp_path: Path) -> None:
    folder = folder_with("gemma2", vicuna, tmp_path, head_dim=16)
    with pytest.raises(WeightsError, match="final_logit_softcapping"):
        build_model(open_bundle(folder), ModelOptions(attention="eager"))


def test_missing_tensors_are_never_filled_at_random(vicuna, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = folder_with("llama", vicuna, tmp_path)
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="do not fill the model"):
        build_model(open_bundle(folder))


def test_a_family_from_outside(vicuna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING.md's recipe: what transformers loads trains, and packed once it is listed."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = type("OwnConfig", (LlamaConfig,), {"model_type": "own_family"})
    AutoConfig.register("own_family", config)
    own = type("OwnForCausalLM", (LlamaForCausalLM,), {"config_class": config})
    AutoModelForCausalLM.register(config, own)
    bundle = open_bundle(folder_with("own_family", vicuna, tmp_path))
    batch = vicuna.batch("stage2")
    padded = build_model(bundle)
    listed = PACKABLE_MODELS | {"own_family"}
    monkeypatch.setattr("mgpt4_hpc.model.nn.language.PACKABLE_MODELS", listed)
    packed = build_model(bundle)
    assert [runs_packed(model.language_model) for model in (padded, packed)] == [False, True]
    torch.testing.assert_close(packed.answer_loss(**batch), padded.answer_loss(**batch))
