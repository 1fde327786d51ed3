"""Tests of ``data/reading/feature_cache_file.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgpt4_hpc.data.reading.feature_cache_file import (
    FeatureShard,
    write_shard,
)
from mgpt4_hpc.errors import DataError
from tests.unit.data.feature_rows import rows


def test_damage_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write_shard(path, rows(0, range(5)), [], "bf16")
    whole = path.read_bytes()
    shard = FeatureShard(path, "bf16")
    at = whole.index(np.full((2, 3), 3, "<u2").tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with path.open("rb") as file:
        assert shard.read(file.fileno(), 2).key == "k2"
        with pytest.raises(DataError, match=r"0\.safetensors.*row 3"):
            shard.read(file.fileno(), 3)
    for length in (0, 4, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="no whole shard"):
            FeatureShard(path, "bf16")
    path.write_bytes(whole)
    with pytest.raises(DataError, match="it holds BF16, not fp32"):
        FeatureShard(path, "fp32")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_shard(tmp_path / "0.safetensors", [*rows(0, range(2)), None], [], "bf16")  # type: ignore[list-item]
    with pytest.raises(OSError, match="No such file"):
        write_shard(tmp_path / "none" / "0.safetensors", rows(0, range(2)), [], "bf16")
    assert list(tmp_path.iterdir()) == []
