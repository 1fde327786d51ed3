"""Tests of ``data/index/shard_list.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.errors import DataError


def test_a_file_of_conversations_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    with pytest.raises(DataError, match=r"talk\.json is no shard.*") as caught:
        expand_shards(tmp_path / "talk.json")
    assert "mgpt4 data pack" in str(caught.value)
