"""What travels with the package is found in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc import resources
from mgpt4_hpc.errors import ConfigError


def test_presets_and_templates_are_found_here() -> None:
    assert {"stage1-vicuna7b", "stage2-vicuna7b", "toy-stage1"} <= set(resources.preset_names())
    assert (resources.slurm_dir() / "stage1.sbatch").is_file()


def test_in_a_wheel_they_lie_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "mgpt4_hpc"
    (package / "_configs").mkdir(parents=True)
    (package / "_configs" / "only.yaml").write_text("stage: 1\n")
    (package.parent / "configs").mkdir()  # of another package: not ours
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.preset_names() == ["only"]


def test_paths_become_absolute_without_following_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resources.resolve_path("link/x") == str(tmp_path / "link" / "x")
    assert resources.resolve_path("~/x") == str(tmp_path / "x")


def test_a_place_that_the_toy_world_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    (tmp_path / "toy_world" / "weights").mkdir(parents=True)
    assert resources.resolve_path("toy:weights") == str(tmp_path / "toy_world" / "weights")
    with pytest.raises(ConfigError, match=r"'toy:wheights' is not[^$]*use one of: toy:weights"):
        resources.resolve_path("toy:wheights")
