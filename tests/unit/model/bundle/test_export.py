"""Tests of ``model/bundle/export.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.export import export_projector, find_projector, read_projector
from mgpt4_hpc.model.bundle.writer import write_bundle
from tests.unit.model.weight_files.folders import same, sources_of


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
