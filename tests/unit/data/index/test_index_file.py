"""Tests of ``data/index/index_file.py``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.index_file import IndexWriter
from mgpt4_hpc.data.index.scan import scan_shard
from tests.unit.data.worlds import members, tar_bytes


def test_a_damaged_index_is_refused_or_read(tmp_path: Path) -> None:
    from mgpt4_hpc.errors import DataError

    rng = random.Random(3)
    shard = tmp_path / "a.tar"
    shard.write_bytes(tar_bytes(members(range(5))))
    out = tmp_path / "a.index"
    with IndexWriter(out, name="a", root=tmp_path, verified=False, decoded=False) as writer:
        writer.add(scan_shard(shard, "a.tar"))
        writer.commit()
    sound = out.read_bytes()
    for _ in range(300):
        mutated = bytearray(sound)
        if rng.random() < 0.5:
            del mutated[rng.randrange(len(mutated)) :]
        else:
            mutated[rng.randrange(min(600, len(mutated)))] = rng.randrange(256)
        broken = tmp_path / f"{os.getpid()}.index"
        broken.write_bytes(mutated)
        try:
            ShardIndex.open(broken)
        except DataError:
            continue
    with pytest.raises(DataError, match="delete it"):
        out.write_bytes(sound[: len(sound) // 2])
        ShardIndex.open(out)
