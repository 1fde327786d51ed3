"""Scan one shard made in the test."""

from __future__ import annotations

import tarfile
from pathlib import Path

from mgpt4_hpc.data.index.scan import ShardScan, scan_shard
from tests.unit.data.worlds import tar_bytes


def scan(
    folder: Path, entries: list[tuple[str, bytes]], *, decode: bool = False, **options: object
) -> ShardScan:
    path = folder / "s.tar"
    path.write_bytes(tar_bytes(entries, tarfile.GNU_FORMAT))
    return scan_shard(path, "s.tar", decode=decode, **options)  # type: ignore[arg-type]
