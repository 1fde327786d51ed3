"""``mgpt4 weights export``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import ConfigError, NoSuchRun, WeightsError
from mgpt4_hpc.model.bundle.bundle import bundle_digest
from mgpt4_hpc.run_dir import RunDir
from tests.cli.model.weights_cases import call
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run, other_weights


def test_import_check_export(imported: Path, vicuna, tmp_path: Path) -> None:
    checked = call("check", imported)
    assert checked.exit_code == 0 and "48 -> 64" in checked.stdout and "stage2" in checked.stdout
    assert json.loads(call("check", imported, "--json").stdout)["ok"]
    out = tmp_path / "exported.pth"
    assert call("export", imported, "--format", "pth", "--out", out).exit_code == 0
    ours = torch.load(out, weights_only=True)["model"]
    theirs = torch.load(vicuna.path / "pretrained_minigpt4.pth", weights_only=True)["model"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_export_finds_a_run_by_its_name(imported: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    shutil.copy(imported / "projector.safetensors", run)
    out = ("--format", "pth", "--out", tmp_path / "p.pth", "--runs-dir", tmp_path / "runs")
    assert call("export", "one", *out).exit_code == 0
    with pytest.raises(NoSuchRun, match="one of the runs there: one"):
        call("export", "two", *out[:3], tmp_path / "q.pth", *out[4:])


def test_export_takes_the_step_that_is_named(world: TinyWorld, tmp_path: Path) -> None:
    run = make_trained_run(world, tmp_path / "runs" / "one", step=12)
    early = load_file(run.checkpoints / "step-00000012" / "projector.safetensors")
    late = {name: -tensor for name, tensor in early.items()}
    CheckpointStore(run.checkpoints).commit(30, {"projector": late}, {"samples_seen": 30})
    for model, expected in (("one@12", early), ("one", late)):
        out = tmp_path / f"{model}.pth"
        runs = ("--runs-dir", tmp_path / "runs")
        assert call("export", model, "--format", "pth", "--out", out, *runs).exit_code == 0
        written = torch.load(out, weights_only=True)["model"]
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_export_refuses_a_bundle_that_the_run_was_not_trained_on(
    world: TinyWorld, run: RunDir, tmp_path: Path
) -> None:
    wrong = other_weights(world, tmp_path / "wrong")
    out = ("--format", "hf", "--out", tmp_path / "out")
    with pytest.raises(WeightsError, match="trained on a bundle with the digest") as raised:
        call("export", run.path, "--weights", wrong, *out)
    assert all(bundle_digest(folder) in raised.value.what for folder in (world.weights, wrong))
    assert not (tmp_path / "out").exists()


def test_export_replaces_nothing_and_makes_no_folder(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.pth").write_text("the only copy")
    for name, told in (("theirs.pth", "exists already"), ("no/p.pth", "mkdir -p")):
        with pytest.raises(ConfigError, match=told):
            call("export", imported, "--format", "pth", "--out", tmp_path / name)
    assert (tmp_path / "theirs.pth").read_text() == "the only copy"
    assert not (tmp_path / "no").exists()
