"""Fixtures for copies on a node's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading import local_copier, local_copies
from tests.unit.data.worlds import make_index


@pytest.fixture
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of 8 samples, and a look ahead of 40."""
    monkeypatch.setattr(local_copies, "MAX_BLOCK_SAMPLES", 8)
    monkeypatch.setattr(local_copier, "AHEAD", 40)
    monkeypatch.setattr(local_copier, "_CHUNK", 8)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    return make_index(tmp_path, 100, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    return tmp_path / "node" / "stage"
