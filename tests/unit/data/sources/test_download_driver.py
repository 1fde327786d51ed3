"""Tests of ``data/sources/download_driver.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import Download, Effort
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.download_cases import (
    SMALL,
    fake_environment,
    finish,
    write_list,
)


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
