"""What was exported comes back bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.export import read_projector
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from tests.unit.model.huggingface.conftest import Exported, weights


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


@pytest.mark.slow
def test_import_brings_the_same_bits_back(exported: Exported, tmp_path: Path) -> None:
    weights("import", "--hf", exported.folder, "--out", tmp_path / "again")
    before, after = open_bundle(exported.weights), open_bundle(tmp_path / "again")
    assert after.architecture == before.architecture and after.llm_config == before.llm_config
    assert same(after.vision_state(), before.vision_state())
    assert same(after.qformer_state(), before.qformer_state())
    assert same(after.projector_state() or {}, read_projector(exported.run.path))
    name = "model.safetensors"
    assert same(load_file(after.llm_dir / name), load_file(before.llm_dir / name))
    texts = ["###Human: <Img>", "</Img> it is <image> \ue000 ###"]
    ours, theirs = load_tokenizer(before.llm_dir), load_tokenizer(after.llm_dir)
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    # A bundle with a projector is exported without a run.
    weights("export", tmp_path / "again", "--format", "hf", "--out", tmp_path / "twice")
    assert (tmp_path / "twice" / name).read_bytes() == (exported.folder / name).read_bytes()


def test_other_folders_are_refused(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("mgpt4"))
    with pytest.raises(WeightsError, match="is not what `mgpt4 weights export"):
        weights("import", "--hf", tmp_path / "bare", "--out", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]
