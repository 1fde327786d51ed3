"""Passes over the data as optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.data.index.index import build_index
from mgpt4_hpc.data.sources.epochs import steps_of_epochs
from mgpt4_hpc.errors import ConfigError
from tests.unit.data.worlds import write_shards


def values(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    sources = []
    for name, samples in (("a", 10), ("b", 5)):
        build_index(write_shards(tmp_path / name, samples, 5), tmp_path / f"{name}.index")
        sources.append({"name": name, "index": str(tmp_path / f"{name}.index")})
    usual = {"data.sources": sources, "train.global_batch_size": 4, "train.max_epochs": 2}
    return usual | changes


def test_all_samples_count_but_those_held_out(tmp_path: Path) -> None:
    wanted = values(tmp_path)
    steps, told = steps_of_epochs(wanted)
    assert steps == 8 and "15 samples, 4 a step" in told
    assert steps_of_epochs({**wanted, "train.max_epochs": "0.1"})[0] == 1
    assert steps_of_epochs({**wanted, "data.val_fraction": 0.3})[0] < 8


def test_a_source_without_an_index_is_named(tmp_path: Path) -> None:
    wanted = values(tmp_path)
    wanted["data.sources"][1] = {"name": "b", "path": str(tmp_path / "b")}
    with pytest.raises(ConfigError, match="number of samples of b, and it has no index"):
        steps_of_epochs(wanted)
    with pytest.raises(ConfigError, match="global_batch_size"):
        steps_of_epochs({"train.max_epochs": 1})
