"""A trained run and another, and the reference folder as a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.cli.model.weights_cases import call
from tests.support.reference import vicuna  # noqa: F401
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="session")
def run(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("trained")
    return make_trained_run(world, folder / "two", data__val_fraction=0.5)


@pytest.fixture(scope="session")
def other(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(world, tmp_path_factory.mktemp("trained") / "three", seed=3)


@pytest.fixture
def imported(vicuna, tmp_path: Path) -> Path:  # noqa: F811
    architecture = tmp_path / "architecture.json"
    architecture.write_text(json.dumps(vicuna.architecture.to_dict()))
    path, out = vicuna.path, tmp_path / "bundle"
    result = call(
        "import",
        *("--vit", path / "eva_vit_g.pth"),
        *("--qformer", path / "blip2_pretrained_flant5xxl.pth"),
        *("--llm", path / "llm"),
        *("--projector", path / "pretrained_minigpt4.pth"),
        *("--architecture", architecture),
        *("--out", out),
    )
    assert result.exit_code == 0 and "17 dropped" in result.stdout, result.output
    return out
