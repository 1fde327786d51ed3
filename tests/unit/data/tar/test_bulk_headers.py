"""Tests of ``data/tar/bulk_headers.py``."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import pytest

from tests.unit.data.tar.walking import WINDOWS, by_tarfile, listed, walk
from tests.unit.data.worlds import members, tar_bytes


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mtime", [0, 1700000000.25])
def test_many_members_in_every_window(tmp_path: Path, window: int, mtime: float) -> None:
    data = tar_bytes(members(range(1500), b"\xff\xd8" * 400), tarfile.PAX_FORMAT, mtime)
    listing = walk(data, tmp_path, window, crcs=True)
    assert listed(listing) == by_tarfile(data)
    assert not listing.faults
    assert listing.crcs is not None
    at = listing.offsets[100]
    assert listing.crcs[100] == zlib.crc32(data[at : at + listing.lengths[100]])
