"""Tests of ``model/conversion/blip2_folder.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle


@pytest.fixture
def blip2(vicuna, tmp_path: Path) -> Path:
    """The library's own BLIP-2 with the reference's numbers, saved by transformers in shards."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    arch = vicuna.architecture
    config = Blip2Config(
        vision_config={
            "hidden_size": arch.vision_width,
            "num_hidden_layers": arch.vision_depth,
            "num_attention_heads": arch.vision_heads,
            "intermediate_size": arch.vision_mlp_width,
            "image_size": arch.image_size,
            "patch_size": arch.patch_size,
        },
        qformer_config={
            "hidden_size": arch.qformer_width,
            "num_hidden_layers": arch.qformer_layers,
            "num_attention_heads": arch.qformer_heads,
            "intermediate_size": arch.qformer_mlp_width,
            "encoder_hidden_size": arch.vision_width,
        },
        text_config={
            "model_type": "t5",
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
            "vocab_size": 40,
        },
        num_query_tokens=arch.num_query_tokens,
    )
    model = Blip2ForConditionalGeneration(config)
    vision, connector = vicuna.bundle.vision_state(), vicuna.bundle.qformer_state()
    tower = model.vision_model if hasattr(model, "vision_model") else model.model.vision_model
    theirs = {
        "embeddings.class_embedding": vision["cls_token"],
        "embeddings.position_embedding": vision["pos_embed"],
        "embeddings.patch_embedding.weight": vision["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": vision["patch_embed.proj.bias"],
        "post_layernorm.weight": connector["ln_vision.weight"],
        "post_layernorm.bias": connector["ln_vision.bias"],
    }
    for index in range(arch.vision_depth):
        ours = {k.removeprefix(f"blocks.{index}."): t for k, t in vision.items()}
        query = ours["attn.q_bias"]
        names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1"}
        names |= {"mlp.fc2": "mlp.fc2", "self_attn.projection": "attn.proj"}
        block = f"encoder.layers.{index}."
        for hf, timm in names.items():
            for part in ("weight", "bias"):
                theirs[f"{block}{hf}.{part}"] = ours[f"{timm}.{part}"]
        theirs[f"{block}self_attn.qkv.weight"] = ours["attn.qkv.weight"]
        bias = torch.cat([query, torch.zeros_like(query), ours["attn.v_bias"]])
        theirs[f"{block}self_attn.qkv.bias"] = bias
    tower.load_state_dict(theirs, strict=True)
    qformer = model.qformer if hasattr(model, "qformer") else model.model.qformer
    qformer.load_state_dict(
        {k.removeprefix("qformer."): t for k, t in connector.items() if k.startswith("qformer.")}
    )
    holder = model if hasattr(model, "query_tokens") else model.model
    holder.query_tokens.data.copy_(connector["query_tokens"])
    model.save_pretrained(tmp_path / "blip2", max_shard_size="200KB")
    return tmp_path / "blip2"


def test_blip2_folder_gives_the_same_bundle(vicuna, blip2: Path, tmp_path: Path) -> None:
    assert len(list(blip2.glob("*.safetensors"))) > 1
    sources = Sources(vit=blip2, qformer=blip2, llm=vicuna.path / "llm")
    written = write_bundle(tmp_path / "b", sources)
    for ours, theirs in (
        (written.vision_state(), vicuna.bundle.vision_state()),
        (written.qformer_state(), vicuna.bundle.qformer_state()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert written.architecture.vision_mlp_width == vicuna.architecture.vision_mlp_width
    vision = written.reports[0]
    assert vision.used["blocks.0.attn.q_bias"].endswith("layers.0.self_attn.qkv.bias")
    assert any("language_model" in key for key in vision.dropped)


def test_blip2_key_bias_must_be_zero(vicuna, blip2: Path, tmp_path: Path) -> None:
    for shard in blip2.glob("*.safetensors"):
        tensors = load_file(shard)
        for key in [k for k in tensors if k.endswith("qkv.bias")]:
            tensors[key] = torch.ones_like(tensors[key])
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="key bias that is not zero"):
        write_bundle(tmp_path / "b", Sources(vit=blip2, qformer=blip2, llm=vicuna.path / "llm"))


def test_blip2_alone_does_not_say_which_variant(vicuna, blip2: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="whether its Q-Former is to be used"):
        write_bundle(tmp_path / "b", Sources(vit=blip2, llm=vicuna.path / "llm"))
