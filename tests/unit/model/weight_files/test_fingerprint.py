"""Tests of ``model/weight_files/fingerprint.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.writer import write_bundle
from tests.unit.model.weight_files.folders import sources_of


def test_changed_bundle_file(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    path = tmp_path / "b" / "connector.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"connector\.safetensors has changed since"):
        open_bundle(tmp_path / "b")
    path.write_bytes(content[:-8])
    with pytest.raises(WeightsError, match="at import it had"):
        open_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        open_bundle(tmp_path / "b")
