"""The race of the loaders runs, and both sides do the same work."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench_data.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_data", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_both_sides_give_the_same_samples(bench: ModuleType, tmp_path: Path) -> None:
    paths = bench.make_shards(tmp_path, 2, 32)
    spec = bench.token_spec()
    bench.build_index(paths, tmp_path / "x.index")
    index = bench.ShardIndex.open(tmp_path / "x.index")
    rows: dict[str, dict[str, object]] = {}
    with bench.ours(index, spec, 0, 0) as loader:
        mine = [next(loader)[0] for _ in range(2)]
    stream = iter(bench.webdataset(paths[:], spec, 0, 0))
    theirs = [next(stream) for _ in range(4)]
    for name, batches in (("mine", mine), ("theirs", theirs)):
        rows[name] = {
            key: (pixels.sum().item(), ids[seen].tolist())
            for batch in batches
            for key, pixels, ids, seen in zip(
                batch.keys, batch.images_NCHW.long(), batch.input_ids_BT,
                batch.attention_mask_BT, strict=True,
            )
        }  # fmt: skip
    assert len(rows["mine"]) == 64
    common = rows["mine"].keys() & rows["theirs"].keys()
    assert len(common) > 32
    assert all(rows["mine"][key] == rows["theirs"][key] for key in common)


@pytest.mark.slow
def test_what_it_reports(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--shards", "2", "--per-shard", "40", "--batches", "1", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["bench_data.py", *small])
    bench.main()
    told = json.loads(capsys.readouterr().out)
    for key in ("ours_samples_per_s", "webdataset_samples_per_s", "ratio"):
        assert set(told[key]) == {"0", "1", "2"} and min(told[key].values()) > 0
    for name in ("conversations", "original_size"):
        assert set(told[name]) == {"ours_samples_per_s", "webdataset_samples_per_s", "ratio"}
    assert told["ours_resume_s"] > 0 and told["webdataset_resume_s"] > 0
