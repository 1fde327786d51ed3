"""Tests of ``data/index/caption.py``."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.data.index.scan import scan_shard
from tests.unit.data.scanning import scan
from tests.unit.data.worlds import members, tar_bytes


def test_a_damaged_text_does_not_cost_a_whole_sample(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(members(range(2))))
    result = scan(tmp_path, members(range(2)))
    at = int(result.blocks[0, 2]) * 512 - 512
    data[at + 110] ^= 1  # the txt's header; the json says the same
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    damaged = scan_shard(path, "s.tar")
    assert damaged.keys == result.keys
    assert damaged.lengths[0, 2] == 0
    assert [entry.key for entry in damaged.quarantined] == [f"@{at}"]
