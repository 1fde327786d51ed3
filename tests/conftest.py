"""Fixtures of every suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_world import TinyWorld, build_tiny_world


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Random model, random pictures: a run takes seconds."""
    return build_tiny_world(tmp_path_factory.mktemp("tiny-world") / "world")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A folder for run directories."""
    return tmp_path / "runs"
