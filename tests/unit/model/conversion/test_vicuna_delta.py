"""Other sources of weights: Hugging Face's BLIP-2, and Vicuna as a difference to LLaMA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle
from mgpt4_hpc.model.conversion.vicuna_delta import merge_vicuna_delta
from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord

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
