"""Checksums of members, as the standard library computes them."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from tests.unit.data.tar.walking import WINDOWS, walk
from tests.unit.data.worlds import tar_bytes


@pytest.mark.parametrize("window", WINDOWS)
def test_members_smaller_and_larger_than_a_window(tmp_path: Path, window: int) -> None:
    draw = random.Random(0)
    contents = [draw.randbytes(size) for size in (0, 1, 511, 512, 513, 100_000, 7)]
    data = tar_bytes([(f"{number}.bin", content) for number, content in enumerate(contents)])
    crcs = walk(data, tmp_path, window, crcs=True).crcs
    assert crcs is not None and crcs.tolist() == [zlib.crc32(content) for content in contents]
