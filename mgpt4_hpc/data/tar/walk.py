"""Where the members of a tar lie, read from its headers alone.

Python's ``tarfile`` does this ten times slower and gives up, or silently stops, at the first
damage. This walk checks each header, finds the next good one behind damage, and reports every
byte range that it could not make sense of.

Understood: ustar (with prefix), GNU long names, pax headers (path and size), base-256 sizes, old
v7 headers. Links, devices and sparse files are reported, not followed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.tar.bulk_headers import collect_headers
from mgpt4_hpc.data.tar.crc import Crcs
from mgpt4_hpc.data.tar.header import (
    BLOCK,
    ZERO_BLOCK,
    Extension,
    Headers,
    Int64,
    WindowedFile,
    checksums_hold,
    find_header,
    header_name,
    header_names,
    is_header,
    parse_pax,
    parse_size,
)

_BATCH = 2048
"""About how many headers' checksums are checked at once: bounds the work lost behind damage, and
1 MiB of headers stays in the processor's cache."""
_LEAP = 64 * 1024
"""Windows from this size on are searched for headers all at once."""
_MAX_PADDING = 2 * 10240
"""Writers fill up to a multiple of 10,240 bytes, at most."""
_AHEAD = 3 * BLOCK
"""A pax header of a time, and the header of its member: looked at together."""
_PIECE = 1024 * 1024
_MAX_EXTENSION = 1024 * 1024
_FILE = ord("0")
_REGULAR = np.frombuffer(b"0\x007", dtype=np.uint8)  # 7: contiguous, read as a regular file
_ENDS = b"\0 "
_DIRECTORY, _PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"5xgLK"
_NO_MEMBER = frozenset(b"xgLK")
_TYPE_NAMES = {
    "1": "is a hard link",
    "2": "is a symbolic link",
    "3": "is a character device",
    "4": "is a block device",
    "6": "is a FIFO",
    "S": "is a sparse file",
}


@dataclass(frozen=True, slots=True)
class TarFault:
    """Something in a tar that is not a plain readable member.

    Attributes:
        offset: of the header, or of the range's first byte.
        name: the member's name as bytes, or what is left of it; empty where it is unknown.
        reason: for people; reads as a continuation of "this member ...".
    """

    offset: int
    name: bytes
    reason: str


@dataclass(slots=True)
class TarListing:
    """Regular members in the order they lie in, and what was wrong.

    Attributes:
        names: as bytes, whatever the archive says: nothing is checked here.
        offsets: int64[n], of the first data byte.
        lengths: int64[n], of the data in bytes.
        crcs: int64[n], CRC32 of the data; None unless asked for.
    """

    names: list[bytes]
    offsets: Int64
    lengths: Int64
    crcs: Int64 | None
    faults: list[TarFault]


def walk_tar(file: WindowedFile, *, with_crcs: bool = False) -> TarListing:
    """List the regular members of a tar.

    Args:
        file: the tar.
        with_crcs: also read all data, in the same pass; wants a large window.

    Raises:
        OSError: if the file cannot be read.
    """
    return _Walk(file, Crcs(file) if with_crcs else None).run()


class _Walk:
    """One pass over a tar."""

    def __init__(self, file: WindowedFile, crcs: Crcs | None = None) -> None:
        self.file = file
        self.crcs = crcs
        self.pos = 0
        self.extension: Extension | None = None
        self.times: dict[int, bytes] = {}
        self.names: list[bytes] = []
        self.columns: list[Int64] = [np.zeros((3, 0), dtype=np.int64)]
        self.faults: list[TarFault] = []

    def run(self) -> TarListing:
        """The listing of the whole file, up to its end or its first fault."""
        going = True
        while going:
            headers = Headers()
            stopped = self._collect(headers)
            blocks, positions, sizes = headers.columns()
            good = checksums_hold(blocks)
            count = len(good)
            if not good.all():
                # What lies behind was found by a size that cannot be trusted.
                count = int(np.argmin(good))
                self.pos = int(positions[count])
                self.extension = headers.extensions.get(count)
                stopped = "has a header with a wrong checksum"
            crcs = np.asarray(self.crcs.take(), np.int64) if self.crcs else np.zeros_like(sizes)
            self._keep(blocks, np.stack([positions, sizes, crcs]), count, headers.extensions)
            if stopped:
                going = self._step_over(stopped)
        offsets, lengths, crcs = np.concatenate(self.columns, axis=1)
        return TarListing(self.names, offsets, lengths, crcs if self.crcs else None, self.faults)

    def _collect(self, headers: Headers) -> str:
        """Walk a batch of headers from ``pos`` on; says why it stopped, if not at the limit.

        The inner loop of indexing: 100,000 samples are 300,000 to 600,000 rounds, so it parses
        the common header in place, and passes over the usual pax header.
        """
        file, crcs, pos, times = self.file, self.crcs, self.pos, self.times
        base, buffer = file.base, file.buffer
        last = len(buffer) - _AHEAD
        keep = headers.pending.append
        while len(headers.pending) < _BATCH and headers.num < _BATCH:
            at = pos - base
            if not 0 <= at <= last:
                buffer = file.fill(pos, _AHEAD)
                base, at, last = pos, 0, len(buffer) - _AHEAD
                if len(buffer) >= _LEAP and self.extension is None:
                    far = collect_headers(headers, buffer, base, crcs)
                    if far:
                        pos, last = pos + far, -1
                        continue
                if len(buffer) < BLOCK:
                    self.pos = pos
                    return "is cut off by the end of the file" if buffer else "end of file"
            if buffer[at + 156] == _PAX and at <= last and buffer[at + 2 * BLOCK + 156] == _FILE:
                newline = buffer.find(b"\n", at + BLOCK, at + 2 * BLOCK)
                if newline - at in times and buffer.startswith(times[newline - at], at):
                    pos, at = pos + 2 * BLOCK, at + 2 * BLOCK
            header = buffer[at : at + BLOCK]
            kind = header[156]
            try:
                size = int(header[124:135], 8) if header[135] in _ENDS else parse_size(header)
            except ValueError:
                size = parse_size(header)
            if size <= 0 and (size < 0 or header == ZERO_BLOCK):
                self.pos = pos
                return "end marker" if header == ZERO_BLOCK else "is no tar header"
            member_size = size
            if kind == _FILE and self.extension is None:
                pass
            elif kind in _NO_MEMBER:
                if kind == _PAX and self._learn(header, buffer[at + BLOCK : at + 2 * BLOCK], size):
                    continue
                member_size = -1
                self._extend(kind, pos + BLOCK, size)
                base, buffer, last = file.base, file.buffer, len(file.buffer) - _AHEAD
            elif self.extension is not None:
                extension, self.extension = self.extension, None
                headers.extensions[headers.num + len(headers.pending)] = extension
                if extension.size is not None:
                    member_size = size = extension.size
            keep((header, pos, member_size))
            if crcs is not None:
                crcs.add(pos, member_size)
            pos += BLOCK + ((size + BLOCK - 1) & -BLOCK)
        self.pos = pos
        return ""

    def _learn(self, header: bytes | bytearray, data: bytes | bytearray, size: int) -> bool:
        """Note how a pax header begins that holds only a time; False if that is known.

        webdataset's writer puts one before each member, all alike but for the time: one good
        checksum speaks for all of them. ``times`` has what they begin with, up to the time
        itself, by the place of the newline behind it.
        """
        newline, record = BLOCK + size - 1, b"%d mtime=" % size
        new = newline not in self.times and data.startswith(record) and is_header(bytes(header))
        if new:
            self.times[newline] = bytes(header) + record
        return new

    def _extend(self, kind: int, offset: int, size: int) -> None:
        """Take in the data of an extension header."""
        if kind in (_PAX_GLOBAL, _GNU_LINK):
            return
        extension = self.extension = self.extension or Extension()
        if size > _MAX_EXTENSION:
            extension.fault = f"follows an extension header of {size} bytes"
            return
        data = self.file.read(offset, size)
        if kind == _GNU_NAME:
            extension.name = data.partition(b"\0")[0]
        else:
            parse_pax(data, extension)

    def _keep(
        self,
        blocks: NDArray[np.uint8],
        columns: Int64,
        count: int,
        extensions: dict[int, Extension],
    ) -> None:
        """Add the members among the first ``count`` headers; columns: position, size, CRC32."""
        end = self.file.size
        rows = np.flatnonzero(columns[1, :count] >= 0)
        members, kinds = columns[:, rows], blocks[rows, 156]
        members[0] += BLOCK  # from the header to its data
        names = header_names(blocks[rows])
        extended = {
            int(np.searchsorted(rows, row)): extension
            for row, extension in extensions.items()
            if row < count
        }
        for index, extension in extended.items():
            if extension.name is not None:
                names[index] = extension.name
        plain = np.isin(kinds, _REGULAR) & (members[0] + members[1] <= end)
        if extended or not plain.all() or b"/\0" in b"\0".join([*names, b""]):
            for index, name in enumerate(names):
                offset, size = int(members[0, index]), int(members[1, index])
                fault = extended[index].fault if index in extended else ""
                fault = fault or _fault(int(kinds[index]), name, offset + size, end)
                plain[index] = not fault and kinds[index] != _DIRECTORY and name[-1:] != b"/"
                if fault:
                    self._fault(offset - BLOCK, name, fault)
            names = [name for name, good in zip(names, plain.tolist(), strict=True) if good]
        self.names += names
        self.columns.append(members[:, plain])

    def _step_over(self, stopped: str) -> bool:
        """Report why the walk stopped and move to the next header; False at the end."""
        file, begin = self.file, self.pos
        extension, self.extension = self.extension, None
        if extension is not None and stopped in ("end of file", "end marker"):
            self._fault(begin, extension.name or b"", "is announced, but does not follow")
        if stopped == "end of file":
            self._fault(file.size, b"", "has no end marker: the tar may have been cut short")
            return False
        if stopped == "end marker":
            following = find_header(file, begin)
            if following is None:
                self._check_tail(begin)
                return False
            self._fault(begin, b"", f"zeros up to byte {following}, behind which samples go on")
        else:
            name = extension.name if extension and extension.name else _guess_name(file, begin)
            following = find_header(file, begin + 1)
            until = file.size if following is None else following
            if name:
                self._fault(begin, name, stopped)
            what = f"bytes {begin} to {until} cannot be read, and may hide more samples"
            self._fault(begin, b"", what)
            if following is None:
                return False
        self.pos = following
        return True

    def _check_tail(self, begin: int) -> None:
        """Complain of anything but the padding that writers put behind the end marker."""
        pos = begin
        while data := self.file.read(pos, min(_PIECE, max(0, self.file.size - pos))):
            if data.strip(b"\0"):
                self._fault(begin, b"", f"bytes {pos} to {self.file.size} are no part of the tar")
                return
            pos += len(data)
        if pos - begin > _MAX_PADDING:
            zeros = f"ends with {pos - begin} zero bytes: what was there may be missing"
            self._fault(begin, b"", zeros)
        elif pos % BLOCK:
            self._fault(begin, b"", f"has {pos} bytes, no multiple of 512: it was cut short")

    def _fault(self, offset: int, name: bytes, reason: str) -> None:
        self.faults.append(TarFault(offset, name, reason))


def _fault(kind: int, name: bytes, data_end: int, file_end: int) -> str:
    """Why a member cannot be used; empty for plain files and for directories."""
    if kind == _DIRECTORY or name[-1:] == b"/":  # old tars mark a directory by the slash alone
        return ""
    if kind not in _REGULAR:
        return _TYPE_NAMES.get(chr(kind), f"has the unknown type {chr(kind)!r}")
    return f"is cut off at byte {file_end}, the file's end" if data_end > file_end else ""


def _guess_name(file: WindowedFile, offset: int) -> bytes:
    """What a damaged header seems to be called; empty if it looks like no name."""
    header = file.read(offset, BLOCK).ljust(BLOCK, b"\0")
    if header[156] in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
        return b""  # the name of an extension header says nothing
    name = header_name(header)
    try:
        return name if name.decode().isprintable() else b""
    except UnicodeDecodeError:
        return b""
