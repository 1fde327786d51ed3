"""Shards of features, the folder that they make up, and which samples have to be in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import (
    BadRow,
    write_shard,
)
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.errors import DataError, StorageTrouble
from tests.unit.data.feature_rows import BINDING, cache, rows


def test_a_cache_on_storage_that_stumbles_is_waited_for(tmp_path: Path) -> None:
    made = cache(tmp_path / "c")
    path = made.folder / "0.safetensors"
    write_shard(path, rows(0, range(5)), [], "bf16")
    made.refresh()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            path.with_name("aside").rename(path)

    path.rename(path.with_name("aside"))
    reader = FeatureReader(made, ["a"], sleep=sleep)
    assert reader.read(0, 3)[0].key == "k3" and len(slept) == 3
    reader.close()
    path.unlink()
    with pytest.raises(StorageTrouble, match=r"0\.safetensors cannot be read") as error:
        reader.read(0, 3)
    assert not error.value.will_repeat and 30 < sum(slept[3:]) < 31
    path.symlink_to(path)
    with pytest.raises(DataError, match="symbolic links"):
        reader.read(0, 3)


def test_a_cache_of_something_else_is_refused_with_every_difference(tmp_path: Path) -> None:
    cache(tmp_path / "c")
    opened = FeatureCache(tmp_path / "c")
    opened.require(BINDING, {"b": "d2"})  # fewer sources are no difference
    told = opened.differences({**BINDING, "resize": "border"}, {"b": "d3", "sbu": "d4"})
    assert told == [
        "resize was squash, is border",
        "the index of b was d2, is d3",
        "it has no source 'sbu', only a, b",
    ]
    with pytest.raises(DataError, match="features are bf16, asked for is fp32"):
        cache(tmp_path / "c", "fp32")
    with pytest.raises(DataError, match="no feature cache"):
        FeatureCache(tmp_path / "nothing")
    (tmp_path / "c" / "cache.json").write_text('{"format": "mgpt4-features-2"}')
    with pytest.raises(DataError, match="mgpt4-features-2"):
        FeatureCache(tmp_path / "c")


def test_a_bad_sample_that_was_encoded_later_is_good(tmp_path: Path) -> None:
    made = cache(tmp_path)
    write_shard(tmp_path / "0.safetensors", [], [BadRow(0, 5, "k", "bad")], "bf16")
    made.refresh()
    assert (made.state(0, 5), made.state(0, 6)) == (False, None)
    write_shard(tmp_path / "1.safetensors", rows(0, range(5, 6)), [], "bf16")
    made.refresh()
    assert made.state(0, 5) is True and not made.bad
