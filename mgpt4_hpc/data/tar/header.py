"""Single tar headers: their numbers, checksums, names and extension records.

A header is one block of 512 bytes: name at 0 (100 bytes), size at 124 (12), checksum at 148 (8),
type at 156, magic at 257, name prefix at 345 (155), as POSIX.1-1988 (ustar) lays down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
SMALL_WINDOW = 8 * 1024
"""Enough for the headers and texts between two images: one read per sample when cached."""
LARGE_WINDOW = 4 * 1024 * 1024
"""For cold or remote storage, where streaming everything beats a round trip per sample."""

_SLOW_READ_S = 200e-6
_TIMED_READS = 32
_MAGIC = b"ustar"
_MAX_SIZE = 2**50
_MAGIC_AT = 257
_EIGHTS = 8 ** np.arange(5, -1, -1, dtype=np.int64)


class WindowedFile:
    """``pread`` through a window that moves forward.

    Args:
        fd: open for reading; its position is neither used nor moved.
        size: of the file in bytes.
        window: bytes per read; a small one grows when the first reads turn out slow.

    Attributes:
        base: offset of the window's first byte.
        buffer: the window; overwritten by the next ``fill``.
    """

    def __init__(self, fd: int, size: int, window: int = SMALL_WINDOW) -> None:
        self.fd = fd
        self.size = size
        self.base = 0
        self.buffer: bytes | bytearray = b""
        # Reused: fresh memory costs more than the copy into it.
        self._hold = bytearray(min(window, size + BLOCK))
        self._reads = 0
        self._read_s = 0.0

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``: fewer at the end of the file."""
        start = offset - self.base
        if start < 0 or start + length > len(self.buffer):
            self.fill(offset, length)
            start = 0
        return bytes(self.buffer[start : start + length])

    def fill(self, offset: int, length: int) -> bytes | bytearray:
        """Move the window to ``offset``; it holds ``length`` bytes or more, if the file does."""
        want = max(length, len(self._hold))
        if want <= SMALL_WINDOW:
            self.buffer = self._read_small(offset, want)
        else:
            if want > len(self._hold):
                self._hold = bytearray(want)
            got = os.preadv(self.fd, (self._hold,), offset)
            self.buffer = self._hold
            if got < want:
                self.buffer = self._read_on(bytes(self._hold[:got]), offset, want)
        self.base = offset
        return self.buffer

    def _read_small(self, offset: int, want: int) -> bytes:
        if self._reads >= _TIMED_READS:
            data = os.pread(self.fd, want, offset)
        else:
            began = time.perf_counter()
            data = os.pread(self.fd, want, offset)
            self._note_time(time.perf_counter() - began)
        return data if len(data) == want else self._read_on(data, offset, want)

    def read_aside(self, offset: int, length: int) -> bytes:
        """Like ``read``, but the window stays where it is."""
        return self._read_on(os.pread(self.fd, length, offset), offset, length)

    def _read_on(self, data: bytes, offset: int, want: int) -> bytes:
        while len(data) < want:
            more = os.pread(self.fd, want - len(data), offset + len(data))
            if not more:
                if data:  # the file may have shrunk since it was measured
                    self.size = min(self.size, offset + len(data))
                break
            data += more
        return data

    def _note_time(self, seconds: float) -> None:
        self._reads += 1
        self._read_s += seconds
        if self._reads == _TIMED_READS and self._read_s > _TIMED_READS * _SLOW_READ_S:
            self._hold = bytearray(LARGE_WINDOW)


@dataclass(slots=True)
class Extension:
    """What extension headers say about the member behind them."""

    name: bytes | None = None
    size: int | None = None
    fault: str = ""


def parse_size(header: bytes | bytearray) -> int:
    """Size field of a header, or -1 if it holds no number."""
    if header[124] == 0x80:  # base 256, as GNU writes sizes of 8 GiB and more
        size = int.from_bytes(header[125:136], "big")
        return size if size < _MAX_SIZE else -1
    digits = header[124:136].strip(b"\0 ")
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and b"8" not in digits and b"9" not in digits else -1


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
            extension.size = min(int(value), _MAX_SIZE)
        elif key.startswith(b"GNU.sparse"):
            extension.fault = "is a sparse file"
        data = data[length:]


class Headers:
    """Headers met by a walk; their checksums and names are computed all at once.

    Attributes:
        num: headers taken in by ``add_many``; those of ``pending`` count on from there.
        pending: single headers, appended by the caller: block, byte offset, and its data's size
            (-1: no member, but an extension).
        extensions: what preceding extension headers say, by the header's number.
    """

    __slots__ = ("_found", "extensions", "num", "pending")

    def __init__(self) -> None:
        self.num = 0
        self.pending: list[tuple[bytes | bytearray, int, int]] = []
        self.extensions: dict[int, Extension] = {}
        self._found: list[tuple[NDArray[np.uint8], Int64, Int64]] = []

    def add_many(self, headers: NDArray[np.uint8], positions: Int64, sizes: Int64) -> None:
        """Several headers, uint8[n, 512], in a piece."""
        self._flush()
        self._found.append((headers, positions, sizes))
        self.num += len(positions)

    def columns(self) -> tuple[NDArray[np.uint8], Int64, Int64]:
        """All headers: blocks uint8[n, 512], positions and sizes int64[n]."""
        self._flush()
        if len(self._found) == 1:
            return self._found[0]
        nothing = np.zeros(0, dtype=np.int64)
        return (
            np.concatenate([np.zeros((0, BLOCK), np.uint8), *(part[0] for part in self._found)]),
            np.concatenate([nothing, *(part[1] for part in self._found)]),
            np.concatenate([nothing, *(part[2] for part in self._found)]),
        )

    def _flush(self) -> None:
        if self.pending:
            headers, positions, sizes = zip(*self.pending, strict=True)
            blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
            self._found.append((blocks, _int64(positions), _int64(sizes)))
            self.num += len(positions)
            self.pending.clear()


def _int64(values: Sequence[int]) -> Int64:
    return np.asarray(values, dtype=np.int64)


def header_names(blocks: NDArray[np.uint8]) -> list[bytes]:
    """Names in headers, uint8[n, 512]; prefix included, extension headers not applied."""
    if not len(blocks):
        return []
    names: list[bytes] = np.ascontiguousarray(blocks[:, :100]).view("S100")[:, 0].tolist()
    if b"\0" in b"".join(names):  # left-overs of an older name behind the end of this one
        names = [name.partition(b"\0")[0] for name in names]
    for index in np.flatnonzero(blocks[:, 345]).tolist():
        names[index] = header_name(blocks[index].tobytes())
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
