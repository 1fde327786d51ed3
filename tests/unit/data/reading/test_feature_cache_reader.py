"""Tests of ``data/reading/feature_cache_reader.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from mgpt4_hpc.data.reading.feature_cache_file import (
    BadRow,
    write_shard,
)
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.data.reading.reader import BadSampleError
from mgpt4_hpc.errors import DataError
from tests.unit.data.feature_rows import cache, rows


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_is_written_is_read_row_by_row(tmp_path: Path, dtype: str) -> None:
    made = cache(tmp_path, dtype)
    write_shard(tmp_path / "0.safetensors", rows(0, range(5), dtype), [], dtype)
    bad = [BadRow(1, 9, "k9", "it is no picture")]
    write_shard(tmp_path / "1.safetensors", rows(1, range(4, 6), dtype), bad, dtype)
    write_shard(tmp_path / "2.safetensors", [], [BadRow(0, 77, "k77", "gone")], dtype)
    made.refresh()
    assert made.num_samples == 7
    # A run may know one of the sources only, under another number.
    reader = FeatureReader(made, ["b"], max_open=1)
    sample, features = reader.read(0, 5)
    assert (sample.key, sample.text) == ("k5", 'caption "5" é')
    assert features.shape == (1, 2, 3) and (features == 6).all()
    with pytest.raises(BadSampleError, match="it is no picture"):
        reader.read(0, 9)
    with pytest.raises(DataError, match="sample 3 of b is not in the feature cache"):
        reader.read(0, 3)
    reader.close()
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert file.get_tensor("features").shape == (5, 2, 3)
        assert file.get_tensor("sample").tolist() == [0, 1, 2, 3, 4]


def test_an_open_shard_overwritten_by_another_is_an_error(tmp_path: Path) -> None:
    made = cache(tmp_path)
    path = tmp_path / "0.safetensors"
    write_shard(path, rows(0, range(5)), [], "bf16")
    made.refresh()
    reader = FeatureReader(made, ["a"])
    assert reader.read(0, 3)[0].key == "k3"
    write_shard(tmp_path / "other", rows(0, range(5)[::-1]), [], "bf16")
    path.write_bytes((tmp_path / "other").read_bytes())
    with pytest.raises(DataError, match=r"0\.safetensors.*row 3"):
        reader.read(0, 3)
    assert reader.read(0, 2)[0].key == "k2", "the row in the middle is the same in both"
