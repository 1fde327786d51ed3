"""Tests of ``data/sources/download_driver.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import Download, Effort, ImageSettings
from mgpt4_hpc.errors import DataError

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


def test_a_driver_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    download = Download([write_list(tmp_path / "0.parquet", 20)], tmp_path / "out", SMALL)
    python = fake_environment(tmp_path / "env", "echo 'no space left'; exit 3") / "bin" / "python"
    with pytest.raises(DataError, match="ended with code 3: no space left"):
        download.run(python, Effort(1, 1))
    silent = fake_environment(tmp_path / "silent", "exit 0") / "bin" / "python"
    with pytest.raises(DataError, match="2 of 2 shards could not be written"):
        download.run(silent, Effort(1, 1))
    assert not list((tmp_path / "out" / ".download").glob("*.work"))
    for shard in (0, 1):
        finish(download, shard, 1)
    download.run(tmp_path / "nothing", Effort(1, 1))  # nothing to do: nothing is started
