"""Tests of ``model/bundle/manifest.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.writer import write_bundle
from tests.unit.model.weight_files.folders import sources_of


def test_digest_follows_the_weights(vicuna, tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", sources_of(vicuna))
    bare = write_bundle(tmp_path / "two", sources_of(vicuna, projector=None))
    assert one.digest != bare.digest and bare.projector_state() is None


def test_edited_manifest(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    path = tmp_path / "b" / "bundle.json"
    text = path.read_text()
    path.write_text(text.replace('"vision_heads": 4', '"vision_heads": 8'))
    with pytest.raises(WeightsError, match="was edited"):
        open_bundle(tmp_path / "b")
    path.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(WeightsError, match="has format 99"):
        open_bundle(tmp_path / "b")
    path.write_text(text[:200])
    with pytest.raises(WeightsError, match="cannot read"):
        open_bundle(tmp_path / "b")
