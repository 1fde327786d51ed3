"""The reference folders, for every test of the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.model.conversion.parts import original_sources
from mgpt4_hpc.resources import toy_world_dir
from tests.support.reference import bundle, reference, vicuna  # noqa: F401


@pytest.fixture
def folder(vicuna, tmp_path: Path) -> Path:  # noqa: F811
    """A writable copy of the original's files, with architecture.json."""
    copy = tmp_path / "original"
    shutil.copytree(vicuna.path, copy)
    sizes = vicuna.architecture.to_dict()
    (copy / "architecture.json").write_text(json.dumps(sizes))
    return copy


@pytest.fixture
def toy() -> Path:
    """The toy world's weights, to be read only."""
    return toy_world_dir() / "weights"


@pytest.fixture
def sources(toy: Path):
    return original_sources(toy)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the toy world's weights."""
    shutil.copytree(toy_world_dir() / "weights", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def images(vicuna) -> torch.Tensor:  # noqa: F811
    """Three random images [3, 3, H, W], uint8."""
    size = vicuna.bundle.architecture.image_size
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
