"""Lengths, sizes and duplicates of sources whose numbers are known; the contact sheet."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mgpt4_hpc.data.sources.stats import Spread, collect_stats, spread_choice
from tests.unit.data.sources.indexes import index_of
from tests.unit.data.worlds import encode, jpeg, make_index


def test_words_tokens_and_what_is_cut(tmp_path: Path) -> None:
    captions = ["A dog!", "x" * 31, "x" * 32, "w " * 51, "." * 158]
    index = index_of(tmp_path, [(jpeg(n), caption) for n, caption in enumerate(captions)])
    stats = collect_stats(index, encode=encode)  # one token a character
    assert (stats.num_samples, stats.num_read) == (5, 5)
    assert stats.words == Spread(1, 1, 1, 56 / 5, 51, 51)
    assert stats.over_max_words == 1 / 5
    # Stage 1: "a dog", 31, 32, 50 words with 49 spaces, nothing; each with its newline.
    assert stats.tokens["stage1"] == Spread(1, 1, 32, (6 + 32 + 33 + 100 + 1) / 5, 100, 100)
    assert stats.truncated == {"stage1": 2 / 5, "stage2": 1 / 5}
    stage2 = stats.tokens["stage2"]
    assert stage2 is not None
    assert (stage2.minimum, stage2.maximum) == (9, 161)


def test_without_a_tokenizer_there_are_no_tokens(tmp_path: Path) -> None:
    stats = collect_stats(make_index(tmp_path, 10))
    assert (stats.tokens, stats.truncated) == ({}, {})
    json.dumps(asdict(stats))


def test_sizes_and_duplicates(tmp_path: Path) -> None:
    wide, tall = jpeg(1, (40, 20)), jpeg(2, (10, 30))
    samples = [(wide, "a"), (wide, "b"), (tall, "b"), (wide, "b"), (jpeg(3, (40, 20)), "c")]
    stats = collect_stats(index_of(tmp_path, [*samples, (b"no image", "d")]))
    assert stats.sizes == [(40, 20, 4), (10, 30, 1)]
    assert stats.bad_images == 1
    assert (stats.width, stats.height) == (
        Spread(10, 10, 40, 34.0, 40, 40),
        Spread(20, 20, 20, 22.0, 30, 30),
    )
    assert stats.images is not None
    assert stats.captions is not None
    assert (stats.images.surplus, stats.images.share) == (2, 2 / 6)
    assert [(entry.count, entry.key) for entry in stats.images.largest] == [(3, "0000")]
    assert stats.captions.surplus == 2
    (largest,) = stats.captions.largest
    assert (largest.count, largest.key, largest.caption, largest.shard) == (3, "0001", "b", "0.tar")


def test_a_limit_reads_a_reproducible_part(tmp_path: Path) -> None:
    index = make_index(tmp_path, 200)
    told: list[tuple[int, int]] = []
    some = collect_stats(index, limit=20, on_progress=lambda *now: told.append(now))
    assert some.num_read == 20
    assert told == [(0, 20)]
    assert some == collect_stats(index, limit=20)
    assert some != collect_stats(index, limit=20, seed=1)
    assert collect_stats(index, limit=1000).num_read == 200


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    index = make_index(tmp_path, 20, per_shard=10)
    shard = index.shard_path(1)
    shard.write_bytes(shard.read_bytes()[:-1024])
    stats = collect_stats(index)
    assert stats.num_read == 10
    assert sum(stats.unreadable.values()) == 10


def test_one_shard_that_the_disk_does_not_read_leaves_the_others_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path, 20, per_shard=10)
    opened = os.open

    def failing(path: object, *arguments: object) -> int:
        if str(path).endswith("00001.tar"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    monkeypatch.setattr("mgpt4_hpc.data.sources.stats._PAUSES_S", ())
    stats = collect_stats(index)
    assert stats.num_read == 10
    assert stats.unreadable == {"the shard cannot be read: [Errno 5] Input/output error": 10}


def test_the_choice_is_distinct_spread_and_pinned() -> None:
    chosen = spread_choice(129_000_000, 1000, 0, "stats")
    assert (np.diff(chosen) > 0).all()
    assert (chosen // 129_000 == np.arange(1000)).all()
    assert spread_choice(1000, 5, 0, "stats").tolist() == [42, 251, 559, 628, 936]
    assert spread_choice(3, 5, 0).tolist() == [0, 1, 2]
    assert spread_choice(0, 5, 0).tolist() == []


def test_spread_of_a_histogram() -> None:
    values = np.random.default_rng(0).integers(0, 50, 999)
    spread = Spread.of(Counter(values.tolist()))
    assert spread is not None
    assert spread.median == np.median(values)
    assert spread.mean == pytest.approx(values.mean())
    assert (spread.p5, spread.p95) == tuple(
        np.quantile(values, [0.05, 0.95], method="inverted_cdf")
    )
    assert Spread.of(Counter()) is None
