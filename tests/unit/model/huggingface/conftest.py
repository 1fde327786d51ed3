"""A run on the toy world's weights (its projector is random), exported for transformers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mgpt4_hpc.cli.model.weights import weights_command
from mgpt4_hpc.resources import toy_world_dir
from mgpt4_hpc.run_dir import RunDir
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@dataclass(frozen=True)
class Exported:
    run: RunDir
    folder: Path
    weights: Path


def weights(*words: object) -> Result:
    """``mgpt4 weights``, which must succeed."""
    result = CliRunner().invoke(weights_command, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("hf")
    world = TinyWorld(root)
    shutil.copytree(toy_world_dir() / "weights", world.weights)
    run = make_trained_run(world, root / "toy-run", seed=3)
    weights("export", run.path, "--format", "hf", "--out", root / "model")
    return Exported(run, root / "model", world.weights)
