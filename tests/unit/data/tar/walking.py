"""Tar files of the tests, as our walk and as tarfile list them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from hypothesis import strategies as st

from mgpt4_hpc.data.tar.header import WindowedFile
from mgpt4_hpc.data.tar.walk import TarListing, walk_tar

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
