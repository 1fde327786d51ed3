"""Other sources of weights: Hugging Face's BLIP-2, and Vicuna as a difference to LLaMA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle
from mgpt4_hpc.model.conversion.vicuna_delta import merge_vicuna_delta
from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord


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


# --- Vicuna's delta --------------------------------------------------------------------------


@pytest.fixture
def delta(vicuna, tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Base, delta with one more token, and what their sum must be, in float16."""
    base, folder = vicuna.path / "llm", tmp_path / "delta"
    shutil.copytree(base, folder)
    torch.manual_seed(1)
    tensors = {k: t.half() for k, t in load_file(base / "model.safetensors").items()}
    difference, wanted = {}, {}
    for key, tensor in tensors.items():
        grown = key in ("model.embed_tokens.weight", "lm_head.weight")
        rows = torch.zeros(1 if grown else 0, *tensor.shape[1:], dtype=torch.half)
        padded = torch.cat([tensor, rows]) if grown else tensor
        difference[key] = torch.randn(padded.shape).half() * 0.01
        wanted[key] = padded + difference[key]
    (folder / "model.safetensors").unlink()
    # As published: .bin shards, with constant buffers among the tensors.
    names = sorted(difference)
    for number, part in enumerate((names[:9], names[9:]), start=1):
        shard = {k: difference[k] for k in part}
        shard[f"model.layers.{number - 1}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        torch.save(shard, folder / f"pytorch_model-0000{number}-of-00002.bin")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 513}
    (folder / "config.json").write_text(json.dumps(config))
    return base, folder, wanted


def test_delta_with_one_more_token(delta, tmp_path: Path) -> None:
    base, folder, wanted = delta
    said: list[str] = []
    merged = tmp_path / "vicuna"
    records = merge_vicuna_delta(base, folder, merged, say=said.append)
    assert records == {name: WeightFileRecord.of(merged / name) for name in records}
    ours = {}
    for path in sorted(merged.glob("*.safetensors")):
        ours |= load_file(path)
    assert ours.keys() == {key for key in wanted if not key.endswith("inv_freq")}
    assert all(torch.equal(ours[key], wanted[key]) for key in ours)
    assert any("512 tokens in the base, 513" in line for line in said)
    found = check_llm(merged)
    assert not found.faults and found.dtypes == ["F16"]
    assert (merged / "tokenizer.model").exists()


def test_a_delta_is_merged_last_and_beside_others(delta, vicuna, tmp_path: Path) -> None:
    base, folder, wanted = delta
    theirs = tmp_path / ".b.vicuna" / "half"  # of an import of the same name
    theirs.mkdir(parents=True)
    path, said = vicuna.path, list[str]()
    given = {
        "vit": path / "eva_vit_g.pth",
        "qformer": path / "blip2_pretrained_flant5xxl.pth",
        "architecture": vicuna.architecture,
        "llm": folder,
        "base": base,
    }
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"x")
    for faulty in ({"vit": broken}, {"qformer": broken}, {"projector": broken}):
        with pytest.raises(WeightsError, match=r"broken\.pth"):
            write_bundle(tmp_path / "b", Sources(**(given | faulty)), say=said.append)
    (tmp_path / "taken").mkdir()
    with pytest.raises(WeightsError, match="exists already"):
        write_bundle(tmp_path / "taken", Sources(**given), say=said.append)
    assert not [line for line in said if "adding" in line]

    written = write_bundle(tmp_path / "b", Sources(**given), say=said.append)
    assert len([line for line in said if "adding" in line]) == 2
    ours = {}
    for file in written.llm_dir.glob("*.safetensors"):
        ours |= load_file(file)
    assert ours.keys() == {key for key in wanted if not key.endswith("inv_freq")}
    assert all(torch.equal(ours[key], wanted[key]) for key in ours)
    assert theirs.exists() and [p.name for p in tmp_path.glob(".b*")] == [".b.vicuna"]


def test_delta_of_another_size(delta, tmp_path: Path) -> None:
    base, folder, _ = delta
    shard = folder / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(shard, weights_only=True)
    key = next(k for k in tensors if "mlp" in k)
    tensors[key] = torch.zeros(3, 3)
    torch.save(tensors, shard)
    with pytest.raises(WeightsError, match="7B or 13B"):
        merge_vicuna_delta(base, folder, tmp_path / "vicuna")


def test_a_finished_model_is_no_delta(vicuna, tmp_path: Path) -> None:
    llm = vicuna.path / "llm"
    with pytest.raises(WeightsError, match="looks like a finished model"):
        merge_vicuna_delta(llm, llm, tmp_path / "vicuna")


def test_incomplete_delta(delta, tmp_path: Path) -> None:
    base, folder, _ = delta
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match="does not change"):
        merge_vicuna_delta(base, folder, tmp_path / "vicuna")
