"""Tests of ``launch/submit/preflight_files.py``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mgpt4_hpc.checkpoint import manifest as checkpoints
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.launch.submit.preflight import preflight, preflight_findings
from mgpt4_hpc.launch.submit.preflight_files import (
    checkpoint_fault,
    projector_findings,
    source_findings,
    start_findings,
    weights_findings,
)
from mgpt4_hpc.model.bundle.bundle import original_digest
from mgpt4_hpc.model.conversion.parts import original_sources
from mgpt4_hpc.resources import toy_world_dir
from mgpt4_hpc.run_dir import RunDir


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


def no_permission(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shard of another user; root may read everything."""
    shard.chmod(0)
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == shard:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<html>\n<head>not found</head>" * 99, r"is no tar, it begins with b'<html>\n<head>no'"),
        (b"", "is empty"),
        (bytes(10240), "is a tar without members"),
        (None, "cannot be read (Permission denied)"),
    ],
)
def test_a_shard_that_is_no_tar_is_named_before_the_job_opens_it(
    shards: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, told: str
) -> None:
    checked = config(data__sources=[{"name": "laion", "path": str(shards)}])
    assert source_findings(checked) == ([], [])
    first = shards / "0.tar"
    first.write_bytes(content or b"")
    if content is None:
        no_permission(first, monkeypatch)
    wrong = f"1 x {told}, as {first}"
    assert source_findings(checked) == ([], [f"data source laion: left out: {wrong}"])
    alone = config(data__sources=[{"name": "laion", "path": str(first)}])
    assert source_findings(alone)[0] == [f"data source laion: no shard can be read: {wrong}"]


def test_a_tar_whose_first_header_is_damaged_can_be_read(shards: Path) -> None:
    checked = config(data__sources=[{"name": "laion", "path": str(shards)}])
    first = expand_shards(shards)[0]
    data = bytearray(first.read_bytes())
    data[:400] = b"?" * 400
    first.write_bytes(data)
    assert source_findings(checked) == ([], [])


def test_the_held_out_samples_of_an_index_are_counted(shards: Path, tmp_path: Path) -> None:
    index = tmp_path / "laion.index"
    build_index(expand_shards(str(shards)), index, ScanOptions(workers=1), name="laion")
    checked = with_index(shards, index)
    samples = ShardIndex.open(index).num_samples

    def of(fraction: float) -> tuple[list[str], list[str]]:
        data = checked.data.model_copy(update={"val_fraction": fraction})
        return source_findings(checked.model_copy(update={"data": data}))

    assert of(0.0) == ([], [])
    named = f"held out (data.val_fraction 0.001): 1 of {samples} samples of laion"
    assert of(0.001) == ([], [named])
    ((fault,), notes) = of(0.999)
    assert "data.val_fraction 0.999 leaves nothing to train on in laion" in fault and not notes


def a_checkpoint(run: Path, step: int, data: bytes = b"projector", **meta: Any) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    digest = checkpoints.new_hash()
    digest.update(data)
    record = checkpoints.FileRecord(len(data), digest.hexdigest())
    manifest = checkpoints.Manifest(step, {"projector": record}, meta)
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


def other_weights(folder: Path, *changed: str) -> Path:
    """A copy of the toy's bundle in which these files end with other numbers."""
    shutil.copytree(toy_world_dir() / "weights", folder)
    for name in changed:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("recorded", ["its digest", "none"])
def test_a_projector_of_another_language_model_of_the_same_width_is_noted(
    tmp_path: Path, recorded: str
) -> None:
    run = RunDir(tmp_path / "one")
    run.create({"name": "one", "stage": 1})
    trained = other_weights(tmp_path / "trained")
    write_config(
        run.config_file, load_config("toy-stage1", overrides={"model.weights": str(trained)})
    )
    digest = original_digest(original_sources(trained))
    data = a_projector(tmp_path / "p.safetensors", 4, 4).read_bytes()
    meta = {"bundle_digest": digest} if recorded != "none" else {}
    checkpoint = a_checkpoint(run.path, 5, data, **meta)
    same = [trained, other_weights(tmp_path / "vision", "eva_vit_g.pth")]
    tuned = other_weights(tmp_path / "tuned", "llm/model.safetensors")
    for start in (run.path, checkpoint, checkpoint / "projector.safetensors"):
        for weights in same:
            checked = config(model__weights=str(weights), model__projector=str(start))
            assert projector_findings(checked) == ([], [])
        checked = config(model__weights=str(tuned), model__projector=str(start))
        faults, (note,) = projector_findings(checked)
        assert faults == [] and f"another language model, that of {trained}" in note
    # Behind a run that is still to finish nothing else of its projector is looked at.
    notes = preflight_findings(checked, tmp_path, executor="none", projector_follows=True)[1]
    assert note in notes
    # What lies where the run's bundle was is another one now.
    shutil.copy(tuned / "llm" / "model.safetensors", trained / "llm")
    checked = config(model__weights=str(trained), model__projector=str(run.path))
    faults, notes = projector_findings(checked)
    assert faults == [] and bool(notes) == (recorded != "none")
    shutil.rmtree(trained)
    checked = config(model__weights=str(tuned), model__projector=str(run.path))
    assert bool(projector_findings(checked)[1]) == (recorded != "none")


def test_a_projector_that_was_trained_with_lora_needs_it(tmp_path: Path) -> None:
    """The job refuses the same: ``train/build.py``."""
    run = RunDir(tmp_path / "one")
    run.create({"name": "one", "stage": 1})
    lora = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}
    wanted = {f"lora.{key}": value for key, value in lora.items()}
    write_config(run.config_file, load_config("toy-stage1", overrides=wanted))

    def found(start: Path, **changes: Any) -> tuple[list[str], list[str]]:
        return start_findings(config(model__projector=str(start), **changes), start)

    (fault,) = found(run.path)[0]  # no checkpoint yet
    assert "needs lora.rank=4, lora.alpha=8 and lora.target_modules=[q_proj,v_proj]" in fault
    folder = a_checkpoint(run.path, 5, lora=lora)
    for start in (run.path, folder):
        for wrong in ({}, {"lora__rank": 8}, {"lora__rank": 4, "lora__target_modules": ["q_proj"]}):
            assert len(found(start, **wrong)[0]) == 1, wrong
        fitting = {"lora__rank": 4, "lora__target_modules": ["v_proj", "q_proj"]}
        assert found(start, **fitting) == ([], [])
    faults, (note,) = found(folder / "projector.safetensors")
    assert faults == [] and "are left out; to start from both name the folder" in note


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
