"""Tests of ``launch/submit/preflight_files.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mgpt4_hpc.checkpoint import manifest as checkpoints
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index.index import ScanOptions, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.launch.submit.preflight_files import (
    checkpoint_fault,
    projector_findings,
    source_findings,
    weights_findings,
)
from mgpt4_hpc.resources import toy_world_dir


def config(**changes: Any) -> RunConfig:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("toy-stage1", overrides=overrides).config


def faults_of(checked: RunConfig, folder: Path) -> list[str]:
    with pytest.raises(PreflightError) as caught:
        preflight(checked, folder, executor="local")
    return caught.value.faults


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in expand_shards(toy_world_dir() / "shards" / "laion"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def with_index(shards: Path, index: Path) -> RunConfig:
    return config(data__sources=[{"name": "laion", "path": str(shards), "index": str(index)}])


def test_an_index_must_match_its_shards(shards: Path, tmp_path: Path) -> None:
    index = tmp_path / "laion.index"
    checked = with_index(shards, index)
    assert "does not exist: make it with `mgpt4 data index`" in source_findings(checked)[0][0]
    paths = expand_shards(shards)
    build_index(paths, index, ScanOptions(workers=1), name="laion")
    assert source_findings(checked)[0] == []

    extra = shards / "zzz.tar"
    extra.write_bytes(paths[0].read_bytes())
    (fault,) = source_findings(checked)[0]
    assert "lacks 1 shard (zzz.tar): make it again" in fault
    extra.unlink()
    with paths[0].open("ab") as file:
        file.write(b"\0" * 512)
    (fault,) = source_findings(checked)[0]
    assert "1 shard changed since indexing" in fault and paths[0].name in fault
    index.write_bytes(b"no index")
    assert len(source_findings(checked)[0]) == 1


def a_checkpoint(run: Path, step: int, data: bytes = b"projector") -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    digest = checkpoints.new_hash()
    digest.update(data)
    record = checkpoints.FileRecord(len(data), digest.hexdigest())
    manifest = checkpoints.Manifest(step, {"projector": record}, {})
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "projector.safetensors").write_bytes(data)
    return folder


def test_stage_2_starts_from_a_checkpoint_that_verifies(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run.mkdir()
    (run / "run.json").write_text("{}")
    checked = config(model__projector=str(run))
    assert "has no checkpoint yet: use --after one" in projector_findings(checked)[0][0]
    old, new = a_checkpoint(run, 5), a_checkpoint(run, 9)
    assert projector_findings(checked) == ([], [])

    (new / "projector.safetensors").write_bytes(b"projectox")
    faults, notes = projector_findings(checked)
    assert faults == []
    assert notes == [f"model.projector: {checkpoint_fault(new)}: step-00000005 is taken instead"]
    (old / "manifest.json").write_text(json.dumps({"digest": "0"}))
    assert len(projector_findings(checked)[0]) == 2
    assert "is damaged" in projector_findings(config(model__projector=str(new)))[0][0]


# -- what the projector fits --------------------------------------------------------------------


def test_what_is_taken_for_a_bundle_is_named(tmp_path: Path) -> None:
    (tmp_path / "mgpt4").mkdir()
    for name, fix in (
        ("config.json", f"`mgpt4 weights import --llm {tmp_path} ...`"),
        ("mgpt4/export.json", f"`mgpt4 weights import --hf {tmp_path} --out BUNDLE`"),
    ):
        (tmp_path / name).write_text("{}")
        (fault,), _ = weights_findings(config(model__weights=str(tmp_path)))
        assert fix in fault
    manifest = tmp_path / "bundle.json"
    manifest.write_text("{}")
    (fault,), _ = weights_findings(config(model__weights=str(manifest)))
    assert "is a file" in fault and f"fix: give the folder, {tmp_path}" in fault


def a_projector(path: Path, rows: int, columns: int, prefix: str = "") -> Path:
    """A projector's file of these sizes."""
    save_file({f"{prefix}llama_proj.weight": np.zeros((rows, columns), np.float32)}, path)
    return path


def test_a_projector_of_another_width_is_told_with_both_sizes(tmp_path: Path) -> None:
    sizes = weights_findings(config())[1]
    assert sizes is not None
    rows, columns = sizes.llm_dim or 0, sizes.projector_in
    file = a_projector(tmp_path / "p.safetensors", rows, columns, "model.")
    assert projector_findings(config(model__projector=str(file)), sizes) == ([], [])
    file = a_projector(tmp_path / "q.safetensors", rows + 1, columns + 2)
    (first, second) = projector_findings(config(model__projector=str(file)), sizes)[0]
    for number in (columns, columns + 2):
        assert f"(width {number})" in first or f"of width {number}" in first
    assert f"width {rows + 1}" in second and f"width {rows}" in second
    assert "take the projector that was trained" in first and "set model.weights" in second

    run = tmp_path / "one"
    (run / "checkpoints" / "step-00000005").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    folder = run / "checkpoints" / "step-00000005"
    data = a_projector(folder / "projector.safetensors", rows + 1, columns).read_bytes()
    digest = checkpoints.new_hash()
    digest.update(data)
    record = checkpoints.FileRecord(len(data), digest.hexdigest())
    (folder / "manifest.json").write_bytes(
        checkpoints.Manifest(5, {"projector": record}, {}).to_bytes()
    )
    for start in (run, folder):
        (fault,) = projector_findings(config(model__projector=str(start)), sizes)[0]
        assert f"width {rows + 1}" in fault
    whole = config(model__projector=str(run))
    assert any(f"width {rows + 1}" in fault for fault in faults_of(whole, tmp_path))


def test_a_projector_in_the_originals_format_is_looked_at_too(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "pretrained_minigpt4.pth"
    torch.save({"model": {"llama_proj.weight": torch.zeros(7, 5)}}, file)
    faults = faults_of(config(model__projector=str(file)), tmp_path)
    assert any("width 7" in fault for fault in faults) and any("width 5" in f for f in faults)
    torch.save({"model": {"lm_head.weight": torch.zeros(7, 5)}}, file)
    assert "holds no llama_proj.weight" in "".join(
        faults_of(config(model__projector=str(file)), tmp_path)
    )
