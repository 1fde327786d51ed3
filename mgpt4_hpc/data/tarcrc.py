"""CRC32s of tar members, computed beside the walk that finds them.

One thread hashes the window that was just walked while the next is read: zlib lets go of the
interpreter meanwhile, so verifying costs hardly more than reading and hashing alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from mgpt4_hpc.data.tarheader import BLOCK, Int64, WindowedFile

_PIECE = 16 * 1024 * 1024


class Crcs:
    """Collects CRC32s in the order in which headers are met.

    Args:
        file: that is being walked.
    """

    def __init__(self, file: WindowedFile) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._parts: list[list[int] | Future[list[int]]] = []

    def add(self, position: int, size: int) -> None:
        """Of the data behind one header, wherever it lies; size -1 (no member) counts as 0."""
        crc, offset, end = 0, position + BLOCK, position + BLOCK + size
        while offset < end and (data := self._file.read_aside(offset, min(end - offset, _PIECE))):
            crc = zlib.crc32(data, crc)
            offset += len(data)
        self._parts.append([crc])

    def add_window(self, positions: Int64, sizes: Int64) -> None:
        """Of the data behind headers that all lie, with it, in the file's present window."""
        begins = (positions - (self._file.base - BLOCK)).tolist()
        job = self._thread.submit(_crcs, memoryview(self._file.buffer), begins, sizes.tolist())
        self._file.in_use_by(job)
        self._parts.append(job)

    def take(self) -> list[int]:
        """All since the last call, one per header; 0 for those that are no members."""
        parts, self._parts = self._parts, []
        return [
            crc for part in parts for crc in (part.result() if isinstance(part, Future) else part)
        ]

    def __enter__(self) -> Crcs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.shutdown()


def _crcs(view: memoryview, begins: Sequence[int], sizes: Sequence[int]) -> list[int]:
    crc32 = zlib.crc32
    return [
        crc32(view[begin : begin + size]) if size > 0 else 0
        for begin, size in zip(begins, sizes, strict=True)
    ]
