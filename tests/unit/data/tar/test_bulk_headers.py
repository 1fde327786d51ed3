"""Tests of ``data/tar/bulk_headers.py``."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import strategies as st

from mgpt4_hpc.data.tar.header import WindowedFile
from mgpt4_hpc.data.tar.walk import TarListing, walk_tar
from tests.unit.data.worlds import members, tar_bytes

WINDOWS = [512, 8 * 1024, 64 * 1024, 4 * 1024 * 1024]


def walk(data: bytes, folder: Path, window: int = 8 * 1024, *, crcs: bool = False) -> TarListing:
    path = folder / "walked.tar"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return walk_tar(WindowedFile(fd, len(data), window), with_crcs=crcs)
    finally:
        os.close(fd)


def by_tarfile(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]


def listed(listing: TarListing) -> list[tuple[str, int, int]]:
    names = [name.decode() for name in listing.names]
    return list(zip(names, listing.offsets.tolist(), listing.lengths.tolist(), strict=True))


names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\"),
    min_size=1,
    max_size=60,
)


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
