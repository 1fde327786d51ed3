"""Tests of ``data/encoding/plan.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.encoding.plan import EncodePlan, missing_from, plan_encoding, substitutes
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import (
    BadRow,
    write_shard,
)
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from tests.unit.data.feature_rows import cache, rows


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
