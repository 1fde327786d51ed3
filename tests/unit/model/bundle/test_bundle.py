"""Bundles: what goes in comes out, bit for bit, and nothing else goes in."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.writer import write_bundle
from mgpt4_hpc.model.weight_files.untrusted_files import read_pth
from tests.unit.model.weight_files.folders import same, sources_of


@pytest.mark.slow
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


def test_an_existing_folder_is_never_overwritten(vicuna, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        write_bundle(tmp_path, sources_of(vicuna))


# --- what must be rejected -------------------------------------------------------------------


def test_llm_folder_without_tokenizer(folder: Path, vicuna, tmp_path: Path) -> None:
    (folder / "llm" / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer") as caught:
        write_bundle(tmp_path / "b", sources_of(vicuna, llm=folder / "llm"))
    assert "copy tokenizer.json and" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_missing_llm_weights(folder: Path) -> None:
    (folder / "llm" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has no weights"):
        open_bundle(folder)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="is no bundle"):
        open_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=f"weights import --llm {tmp_path}"):
        open_bundle(tmp_path)


# --- architecture ----------------------------------------------------------------------------


# --- export ----------------------------------------------------------------------------------


def test_opening_is_quick(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    start = time.process_time()
    open_bundle(tmp_path / "b")
    assert time.process_time() - start < 1.0
