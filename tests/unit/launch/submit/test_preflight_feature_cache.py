"""A feature cache that would be refused by the job is refused before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.encoding.plan import plan_encoding, sample_order
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.data.reading.feature_cache import FeatureCache, binding_of
from mgpt4_hpc.data.reading.feature_cache_file import FeatureRow, write_shard
from mgpt4_hpc.launch.submit.preflight_feature_cache import feature_faults
from tests.unit.data.worlds import write_shards


def settings(tmp_path: Path, **more: object) -> RunConfig:
    source = {"name": "laion", "path": str(tmp_path / "shards"), "index": str(tmp_path / "i.index")}
    overrides = {
        "data.sources": [source],
        "data.feature_cache": str(tmp_path / "cache"),
        "train.max_steps": 2,
        "train.warmup_steps": 1,
        "train.global_batch_size": 8,
        "train.micro_batch_size": 4,
        **more,
    }
    return load_config("toy-stage1", overrides=overrides).config


def test_each_reason_is_told(tmp_path: Path) -> None:
    build_index(write_shards(tmp_path / "shards", 20, 10), tmp_path / "i.index")
    index = ShardIndex.open(tmp_path / "i.index")
    assert feature_faults(settings(tmp_path))[0].startswith("data.feature_cache: ")
    binding = binding_of(
        bundle="told by the job",
        image_size=224,
        has_qformer=True,
        resize="squash",
        ln_vision="bundle",
        precision="fp32",
    )
    cache = FeatureCache.create(
        tmp_path / "cache", binding, {"laion": index.digest}, "bf16", (2, 3)
    )
    config = settings(tmp_path)
    assert "lacks 16 of 16 samples" in feature_faults(config)[0]
    plan = plan_encoding(config, sample_order(config, [index]))
    rows = [FeatureRow(0, int(n), "k", "c", np.zeros((1, 2, 3), "<u2")) for n in plan.sample]
    write_shard(cache.folder / "0.safetensors", rows, [], "bf16")
    assert feature_faults(config) == []
    assert feature_faults(settings(tmp_path, **{"data.feature_cache": None})) == []
    assert feature_faults(settings(tmp_path, **{"data.resize": "border"})) == [
        "data.feature_cache: resize was squash, is border"
    ]
    # Where the job's device decides the precision, the job compares it.
    assert feature_faults(settings(tmp_path, **{"model.precision": "auto"})) == []
    assert "precision was fp32, is bf16" in str(
        feature_faults(settings(tmp_path, **{"model.precision": "bf16"}))
    )
    build_index(write_shards(tmp_path / "shards", 30, 10), tmp_path / "i.index")
    assert "index of laion was" in feature_faults(config)[0]
