"""Single tar headers: their numbers, checksums, names and extension records.

A header is one block of 512 bytes: name at 0 (100 bytes), size at 124 (12), checksum at 148 (8),
type at 156, magic at 257, name prefix at 345 (155), as POSIX.1-1988 (ustar) lays down.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
SMALL_WINDOW = 8 * 1024
"""Enough for the headers and texts between two images: one read per sample when cached."""
LARGE_WINDOW = 4 * 1024 * 1024
"""For cold or remote storage, where streaming everything beats a round trip per sample."""

_SLOW_READ_S = 200e-6
_TIMED_READS = 32
_MAGIC = b"ustar"
_MAGIC_AT = 257
_EIGHTS = 8 ** np.arange(5, -1, -1, dtype=np.int64)


class WindowedFile:
    """``pread`` through one window that moves forward.

    Args:
        fd: open for reading; its position is neither used nor moved.
        size: of the file in bytes.
        window: bytes per read; it grows when the first reads turn out slow.
    """

    def __init__(self, fd: int, size: int, window: int = SMALL_WINDOW) -> None:
        self.fd = fd
        self.size = size
        self.window = window
        self.base = 0
        self.buffer = b""
        self._reads = 0
        self._read_s = 0.0

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``: fewer at the end of the file."""
        start = offset - self.base
        if start < 0 or start + length > len(self.buffer):
            self._fill(offset, length)
            start = 0
        return self.buffer[start : start + length]

    def _fill(self, offset: int, length: int) -> None:
        want = min(max(length, self.window), max(0, self.size - offset))
        began = time.perf_counter()
        data = os.pread(self.fd, want, offset) if want else b""
        while len(data) < want:
            more = os.pread(self.fd, want - len(data), offset + len(data))
            if not more:
                self.size = offset + len(data)  # the file shrank since it was measured
                break
            data += more
        self.base = offset
        self.buffer = data
        if self._reads < _TIMED_READS:
            self._reads += 1
            self._read_s += time.perf_counter() - began
            if self._reads == _TIMED_READS and self._read_s > _TIMED_READS * _SLOW_READ_S:
                self.window = max(self.window, LARGE_WINDOW)


@dataclass(slots=True)
class Extension:
    """What extension headers say about the member behind them."""

    name: bytes | None = None
    size: int | None = None
    fault: str = ""


def parse_size(header: bytes) -> int:
    """Size field of a header, or -1 if it holds no number."""
    if header[135] in b"\0 ":
        try:
            return int(header[124:135], 8)
        except ValueError:
            pass
    if header[124] == 0x80:  # base 256, as GNU writes sizes of 8 GiB and more
        return int.from_bytes(header[125:136], "big")
    try:
        return int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def parse_pax(data: bytes, extension: Extension) -> None:
    """Read the records of a pax header (``LENGTH KEY=VALUE\\n``) into ``extension``."""
    if b"path=" not in data and b"size=" not in data and b"GNU.sparse" not in data:
        return
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 12 else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or length > len(data):
            extension.fault = "follows a pax header that cannot be read"
            return
        if key == b"path":
            extension.name = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                extension.fault = "has a size in its pax header that is no number"
                return
            extension.size = int(value)
        elif key.startswith(b"GNU.sparse"):
            extension.fault = "is a sparse file"
        data = data[length:]


class Headers:
    """Headers met by a walk, whose checksums and names are worked out all at once.

    Attributes:
        raw: the blocks.
        positions: their byte offsets.
        sizes: of the data behind each; -1 for extension headers, which are no members.
        extensions: what preceding extension headers say, per header.
    """

    __slots__ = ("extensions", "positions", "raw", "sizes")

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.positions: list[int] = []
        self.sizes: list[int] = []
        self.extensions: dict[int, Extension] = {}

    def first_bad(self) -> int | None:
        """Index of the first header whose checksum is wrong."""
        if not self.raw:
            return None
        good = checksums_hold(np.frombuffer(b"".join(self.raw), dtype=np.uint8).reshape(-1, BLOCK))
        return None if good.all() else int(np.argmin(good))

    def cut(self, index: int) -> None:
        """Forget the headers from ``index`` on."""
        del self.raw[index:], self.positions[index:], self.sizes[index:]

    def names(self) -> list[bytes]:
        """Name of every header, prefix included, extensions not yet applied."""
        if not self.raw:
            return []
        blocks = np.frombuffer(b"".join(self.raw), dtype=np.uint8).reshape(-1, BLOCK)
        names: list[bytes] = blocks[:, :100].copy().view("S100")[:, 0].tolist()
        if any(b"\0" in name for name in names):
            names = [name.partition(b"\0")[0] for name in names]
        for index in np.flatnonzero(blocks[:, 345]).tolist():
            names[index] = header_name(self.raw[index])
        return names


def header_name(header: bytes) -> bytes:
    """Name in a header, with ustar's prefix where there is one."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def checksums_hold(blocks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which headers, uint8[n, 512], carry the right checksum: bool[n]."""
    field = blocks[:, 148:156]
    summed = blocks.sum(axis=1, dtype=np.uint32).astype(np.int64)
    summed += 8 * ord(" ") - field.sum(axis=1, dtype=np.uint32).astype(np.int64)
    stored = (field[:, :6].astype(np.int64) - ord("0")) @ _EIGHTS
    good = stored == summed
    for index in np.flatnonzero(~good).tolist():  # written with spaces, or with signed bytes
        good[index] = _checksum_holds_slowly(blocks[index], int(summed[index]))
    return good


def _checksum_holds_slowly(block: NDArray[np.uint8], unsigned: int) -> bool:
    try:
        stored = int(block[148:156].tobytes().strip(b"\0 "), 8)
    except ValueError:
        return False
    signed = unsigned - 256 * int((block > 127).sum() - (block[148:156] > 127).sum())
    return stored in (unsigned, signed)


def find_header(file: WindowedFile, start: int, step: int = 1024 * 1024) -> int | None:
    """Offset of the first good header at or behind ``start``, at any alignment; None if none."""
    pos = start
    while pos + BLOCK <= file.size:
        data = file.read(pos, min(step, file.size - pos))
        at = data.find(_MAGIC, _MAGIC_AT)
        while at >= 0:
            header = data[at - _MAGIC_AT : at - _MAGIC_AT + BLOCK]
            if len(header) < BLOCK:
                break
            if is_header(header):
                return pos + at - _MAGIC_AT
            at = data.find(_MAGIC, at + 1)
        if len(data) < step:
            return None
        pos += len(data) - BLOCK
    return None


def is_header(header: bytes) -> bool:
    """Whether 512 bytes are a header with a right checksum and a readable size."""
    block = np.frombuffer(header, dtype=np.uint8).reshape(1, BLOCK)
    return parse_size(header) >= 0 and bool(checksums_hold(block)[0])
