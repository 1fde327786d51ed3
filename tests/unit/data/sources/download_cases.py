"""URL lists, finished shards and a stand-in for img2dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import Download, ImageSettings

pyarrow = pytest.importorskip("pyarrow")

SMALL = ImageSettings(number_sample_per_shard=10)


def write_list(path: Path, rows: int, *, caption: str = "caption") -> Path:
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    urls = [f"http://127.0.0.1:9/{n}" for n in range(rows)]
    parquet.write_table(pyarrow.table({"url": urls, caption: urls}), path)
    return path


def finish(download: Download, shard: int, got: int, **reasons: int) -> None:
    """A shard as img2dataset leaves it."""
    count = got + sum(reasons.values())
    stats = {"count": count, "successes": got, "status_dict": {"success": got, **reasons}}
    (download.out / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    (download.out / f"{shard:05d}.tar").write_bytes(b"x" * 1000)


def fake_environment(folder: Path, script: str) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return folder
