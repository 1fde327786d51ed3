"""Bundles: what goes in comes out, bit for bit, and nothing else goes in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.export import export_projector, find_projector, read_projector
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle
from mgpt4_hpc.model.weight_files.untrusted_files import read_pth


def sources_of(reference, **changes) -> Sources:
    qformer = reference.path / "blip2_pretrained_flant5xxl.pth"
    given = {
        "vit": reference.path / "eva_vit_g.pth",
        "qformer": qformer if qformer.exists() else None,
        "llm": reference.path / "llm",
        "projector": reference.path / "pretrained_minigpt4.pth",
        "architecture": reference.architecture,
    }
    return Sources(**(given | changes))


@pytest.fixture
def folder(vicuna, tmp_path: Path) -> Path:
    """A writable copy of the original's files, with architecture.json."""
    copy = tmp_path / "original"
    shutil.copytree(vicuna.path, copy)
    sizes = vicuna.architecture.to_dict()
    (copy / "architecture.json").write_text(json.dumps(sizes))
    return copy


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_written_bundle_is_the_original(reference, tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "bundle", sources_of(reference))
    assert same(written.vision_state(), reference.bundle.vision_state())
    assert same(written.qformer_state(), reference.bundle.qformer_state())
    assert same(written.projector_state(), reference.bundle.projector_state())
    assert written.architecture == reference.bundle.architecture
    assert written.llm_dir.samefile(reference.path / "llm")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    vision = manifest["sources"][0]
    assert vision["dropped"].keys() >= {"blocks.3.norm1.weight", "norm.weight", "head.bias"}
    assert manifest["tensors"]["vision.safetensors"]["cls_token"][0] == "F32"
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_half_precision_towers_stay_as_they_are(folder: Path, tmp_path: Path, vicuna) -> None:
    path = folder / "eva_vit_g.pth"
    torch.save({k: t.half() for k, t in read_pth(path).items()}, path)
    written = write_bundle(tmp_path / "b", sources_of(vicuna, vit=path))
    assert {t.dtype for t in written.vision_state().values()} == {torch.float16}


def test_the_llama2_variant_has_an_identity_norm(tmp_path: Path, reference) -> None:
    state = reference.bundle.qformer_state()
    identity = torch.equal(state["ln_vision.weight"], torch.ones(len(state["ln_vision.weight"])))
    assert identity == (not reference.architecture.qformer)
    reasons = [report.missing for report in reference.bundle.reports if report.missing]
    assert bool(reasons) == identity


def test_copied_and_referenced_language_model(vicuna, tmp_path: Path) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(vicuna.path / "llm", llm)
    (llm / "modeling_evil.py").write_text("raise SystemExit")
    copied = write_bundle(tmp_path / "copied", sources_of(vicuna, llm=llm), llm="copy")
    referring = write_bundle(tmp_path / "referring", sources_of(vicuna, llm=llm))
    assert copied.digest == referring.digest, "where the folder lies is no part of the identity"
    assert not (copied.llm_dir / "modeling_evil.py").exists()
    assert (copied.llm_dir / "generation_config.json").exists()
    llm.rename(tmp_path / "moved")
    (tmp_path / "copied").rename(tmp_path / "elsewhere")
    assert open_bundle(tmp_path / "elsewhere").digest == copied.digest
    with pytest.raises(WeightsError, match="refers to the language model"):
        open_bundle(tmp_path / "referring")


def test_digest_follows_the_weights(vicuna, tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", sources_of(vicuna))
    bare = write_bundle(tmp_path / "two", sources_of(vicuna, projector=None))
    assert one.digest != bare.digest and bare.projector_state() is None


def test_an_existing_folder_is_never_overwritten(vicuna, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        write_bundle(tmp_path, sources_of(vicuna))


# --- what must be rejected -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eva_vit_g.pth", "pretrained_minigpt4.pth"])
def test_truncated_pth(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="truncated or not a torch file") as caught:
        open_bundle(folder)
    assert name in str(caught.value)


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(folder: Path, zipped: bool) -> None:
    trace, path = folder / "ran", folder / "pretrained_minigpt4.pth"
    content = {"model": {"llama_proj.weight": torch.zeros(2, 2)}, "config": _Bomb(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "config": _Bomb(trace)}))
    with pytest.raises(WeightsError, match="more than tensors and plain values") as caught:
        open_bundle(folder)
    assert not trace.exists()
    assert ("posix.system" if zipped else "Unsupported operand") in str(caught.value)


def test_projector_of_another_model(folder: Path, vicuna) -> None:
    wrong = {
        "model": {"llama_proj.weight": torch.zeros(5120, 768), "llama_proj.bias": torch.zeros(5120)}
    }
    torch.save(wrong, folder / "pretrained_minigpt4.pth")
    with pytest.raises(WeightsError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert "the projector is for the 13B model (width 5120)" in message
    assert "the LLM is a model of width 64" in message
    assert "with Q-Former (Vicuna) (width 768)" in message and "width 48" in message


def test_git_lfs_pointer_as_weights(folder: Path) -> None:
    (folder / "eva_vit_g.pth").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(WeightsError, match="git-lfs pointer"):
        open_bundle(folder)


def test_web_page_and_empty_file(folder: Path) -> None:
    (folder / "eva_vit_g.pth").write_text("<!DOCTYPE html><html>moved</html>")
    with pytest.raises(WeightsError, match="web page"):
        open_bundle(folder)
    (folder / "eva_vit_g.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="is empty"):
        open_bundle(folder)


def test_changed_bundle_file(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    path = tmp_path / "b" / "connector.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"connector\.safetensors has changed since"):
        open_bundle(tmp_path / "b")
    path.write_bytes(content[:-8])
    with pytest.raises(WeightsError, match="at import it had"):
        open_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        open_bundle(tmp_path / "b")


def test_edited_manifest(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    path = tmp_path / "b" / "bundle.json"
    text = path.read_text()
    path.write_text(text.replace('"vision_heads": 4', '"vision_heads": 8'))
    with pytest.raises(WeightsError, match="was edited"):
        open_bundle(tmp_path / "b")
    path.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(WeightsError, match="has format 99"):
        open_bundle(tmp_path / "b")
    path.write_text(text[:200])
    with pytest.raises(WeightsError, match="cannot read"):
        open_bundle(tmp_path / "b")


def test_llm_folder_without_tokenizer(folder: Path, vicuna, tmp_path: Path) -> None:
    (folder / "llm" / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer"):
        write_bundle(tmp_path / "b", sources_of(vicuna, llm=folder / "llm"))
    assert not (tmp_path / "b").exists()


def test_unexplained_missing_and_wrong_keys_are_all_listed(folder: Path) -> None:
    path = folder / "eva_vit_g.pth"
    tensors = read_pth(path)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors["surprise"] = torch.zeros(1)
    del tensors["blocks.1.mlp.fc1.bias"]
    tensors["cls_token"] = torch.zeros(1, 1, 7)
    torch.save(tensors, path)
    with pytest.raises(WeightsError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    for words in ("surprise", "blocks.1.mlp.fc1.bias", "cls_token is (1, 1, 7)"):
        assert words in message


def test_missing_llm_weights(folder: Path) -> None:
    (folder / "llm" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has no weights"):
        open_bundle(folder)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="is no bundle"):
        open_bundle(tmp_path)


# --- architecture ----------------------------------------------------------------------------


def test_architecture_file_is_used(folder: Path, vicuna) -> None:
    assert open_bundle(folder).architecture == vicuna.bundle.architecture


def test_unknown_heads_ask_for_an_architecture(vicuna) -> None:
    with pytest.raises(WeightsError, match="attention heads of width 64") as caught:
        open_bundle(vicuna.path)
    assert "architecture.json" in str(caught.value)


def test_sizes_are_seen_in_shapes(reference, monkeypatch) -> None:
    from mgpt4_hpc.model.conversion import detect

    arch = reference.architecture
    monkeypatch.setitem(detect.VISION_HEADS_BY_WIDTH, arch.vision_width, arch.vision_heads)
    monkeypatch.setitem(detect.QFORMER_HEADS_BY_WIDTH, arch.qformer_width, arch.qformer_heads)
    assert open_bundle(reference.path).architecture == reference.bundle.architecture


def test_bad_architectures_are_explained(vicuna, tmp_path: Path) -> None:
    sizes = vicuna.architecture.to_dict()
    for change, words in (
        ({"depth": 3}, "unknown keys ['depth']"),
        ({"vision_heads": 5}, "does not divide by 5 heads"),
        ({"image_size": 57}, "no multiple of patch_size"),
        ({"vision_width": "64"}, "is not of type int"),
        ({"num_query_tokens": 0}, "num_query_tokens = 0"),
    ):
        with pytest.raises(WeightsError) as caught:
            Architecture.from_dict(sizes | change)
        assert words in str(caught.value)
    del sizes["patch_size"]
    with pytest.raises(WeightsError, match=r"missing keys \['patch_size'\]"):
        Architecture.from_dict(sizes)


# --- export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["pth", "safetensors"])
def test_export_round_trip_is_bit_exact(reference, tmp_path: Path, fmt: str) -> None:
    start = read_projector(reference.path / "pretrained_minigpt4.pth")
    out = export_projector(start, tmp_path / f"p.{fmt}", fmt=fmt)
    assert same(read_projector(out), start)
    again = write_bundle(tmp_path / "again", sources_of(reference, projector=out))
    assert same(again.projector_state(), start)
    assert same(read_projector(tmp_path / "again"), start)
    if fmt == "pth":  # as the original reads it
        theirs = torch.load(out, map_location="cpu", weights_only=True)["model"]
        assert torch.equal(theirs["llama_proj.weight"], start["weight"])
    else:
        assert set(load_file(out)) == {"llama_proj.weight", "llama_proj.bias"}


def test_newest_complete_checkpoint_of_a_run(tmp_path: Path) -> None:
    for step, complete in ((5, True), (10, True), (20, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        tensors = {"weight": torch.full((2, 3), float(step)), "bias": torch.zeros(2)}
        save_file(tensors, folder / "projector.safetensors")
        if complete:
            (folder / "manifest.json").write_text("{}")
    assert find_projector(tmp_path).parent.name == "step-00000010"
    assert read_projector(tmp_path)["weight"][0, 0] == 10
    with pytest.raises(WeightsError, match="holds no projector"):
        read_projector(tmp_path / "checkpoints")


def test_export_refuses_what_is_no_projector(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        export_projector({"weight": torch.zeros(2, 3)}, tmp_path / "p.pth", fmt="pth")
    assert not list(tmp_path.iterdir())


def test_opening_is_quick(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    start = time.perf_counter()
    open_bundle(tmp_path / "b")
    assert time.perf_counter() - start < 1.0
