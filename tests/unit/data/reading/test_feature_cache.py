"""Shards of features, the folder that they make up, and which samples have to be in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.encoding.plan import EncodePlan, missing_from, plan_encoding, substitutes
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import (
    STORED,
    BadRow,
    FeatureRow,
    FeatureShard,
    write_shard,
)
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.data.reading.reader import BadSampleError
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.errors import DataError, StorageTrouble

BINDING = {"bundle": "abc", "resize": "squash"}
SOURCES = {"a": "d1", "b": "d2"}


def rows(source: int, samples: range, dtype: str = "bf16") -> list[FeatureRow]:
    bits = STORED[dtype][1]
    return [
        FeatureRow(source, n, f"k{n}", f'caption "{n}" é', np.full((1, 2, 3), n + source, bits))
        for n in samples
    ]


def cache(folder: Path, dtype: str = "bf16") -> FeatureCache:
    return FeatureCache.create(folder, BINDING, SOURCES, dtype, (2, 3))


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


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_shard(tmp_path / "0.safetensors", [*rows(0, range(2)), None], [], "bf16")  # type: ignore[list-item]
    with pytest.raises(OSError, match="No such file"):
        write_shard(tmp_path / "none" / "0.safetensors", rows(0, range(2)), [], "bf16")
    assert list(tmp_path.iterdir()) == []


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


def config(steps: int, **train: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "stage": 1,
            "data": {"sources": [{"name": "a"}, {"name": "b"}], "val_fraction": 0.1},
            "train": {
                "global_batch_size": 10,
                "micro_batch_size": 5,
                "max_steps": steps,
                "lr": 1e-3,
                "eval_samples": 20,
                **train,
            },
        }
    )


def order(seed: int = 0) -> SampleOrder:
    sizes = [SourceSize("a", 300, 3), SourceSize("b", 50, 1)]
    return SampleOrder(sizes, seed, val_fraction=0.1)


def test_the_plan_has_each_sample_once_in_the_order_of_need() -> None:
    plan = plan_encoding(config(30), order())
    used = list(zip(*(ids.tolist() for ids in order().lookup(range(300))), strict=True))
    planned = list(zip(plan.source.tolist(), plan.sample.tolist(), strict=True))
    assert planned == list(dict.fromkeys(used))
    assert [planned[row] for row in plan.row_of_use] == used
    longer = plan_encoding(config(60), order())
    assert len(longer) > len(plan)
    assert (longer.sample[: len(plan)] == plan.sample).all(), "more steps only add samples"
    evaluating = plan_encoding(config(30, eval_every_steps=5), order())
    added = set(zip(evaluating.source, evaluating.sample, strict=True)) - set(planned)
    held_out = {
        (s, n) for s in (0, 1) for n in order().lookup_val(s, range(order().val_size(s))).tolist()
    }
    assert added and added <= held_out


def fill(made: FeatureCache, plan: EncodePlan, without: int | None = None) -> None:
    every = []
    for number, (source, sample) in enumerate(zip(plan.source, plan.sample, strict=True)):
        if number != without:
            every += rows(int(source), range(sample, sample + 1))
    write_shard(made.folder / "0.safetensors", every, [], "bf16")
    made.refresh()


def test_what_a_run_would_miss_is_counted_with_the_substitutes_of_bad_samples(
    tmp_path: Path,
) -> None:
    made = cache(tmp_path)
    plan = plan_encoding(config(8), order())
    assert missing_from(plan, made) == len(plan)
    fill(made, plan, without=4)
    assert missing_from(plan, made) == 1
    source, sample = int(plan.source[4]), int(plan.sample[4])
    write_shard(tmp_path / "1.safetensors", [], [BadRow(source, sample, "k", "bad")], "bf16")
    made.refresh()
    unknown = substitutes(plan, [4], lambda source_id, sample_id: None)
    assert [entry[0] for entry in unknown] == [source] * len(plan.uses([4]))
    absent = [
        pair for pair in unknown if made.rows_of(np.asarray([pair[0]]), np.asarray([pair[1]])) < 0
    ]
    assert missing_from(plan, made) == len(absent) > 0
    added = [row for s, n in absent for row in rows(s, range(n, n + 1))]
    write_shard(tmp_path / "2.safetensors", added, [], "bf16")
    made.refresh()
    assert missing_from(plan, made) == 0


def test_another_seed_needs_the_same_samples_once_all_are_there(tmp_path: Path) -> None:
    made = cache(tmp_path)
    fill(made, plan_encoding(config(200), order(seed=0)))
    assert missing_from(plan_encoding(config(50), order(seed=1)), made) == 0


def test_a_bad_sample_that_was_encoded_later_is_good(tmp_path: Path) -> None:
    made = cache(tmp_path)
    write_shard(tmp_path / "0.safetensors", [], [BadRow(0, 5, "k", "bad")], "bf16")
    made.refresh()
    assert (made.state(0, 5), made.state(0, 6)) == (False, None)
    write_shard(tmp_path / "1.safetensors", rows(0, range(5, 6)), [], "bf16")
    made.refresh()
    assert made.state(0, 5) is True and not made.bad
