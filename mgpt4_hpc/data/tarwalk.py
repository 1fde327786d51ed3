"""Where the members of a tar lie, read from its headers alone.

Python's ``tarfile`` does this ten times slower and gives up, or silently stops, at the first
damage. This walk checks each header, finds the next good one behind damage, and tells of every
byte range that it could not make sense of.

Understood: ustar (with prefix), GNU long names, pax headers (path and size), base-256 sizes, old
v7 headers. Links, devices and sparse files are reported, not followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mgpt4_hpc.data.tarheader import (
    BLOCK,
    ZERO_BLOCK,
    Extension,
    Headers,
    WindowedFile,
    find_header,
    header_name,
    parse_pax,
    parse_size,
)

_BATCH = 4096
"""Headers whose checksums are checked at once: bounds the work thrown away behind damage."""
_MAX_EXTENSION = 1024 * 1024
_REGULAR = frozenset(b"0\x007")  # 7: contiguous file, read as a regular one
_DIRECTORY, _PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"5xgLK"
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
    """Regular members in the order they lie in, as parallel lists, and what was wrong.

    Attributes:
        names: as bytes, whatever the archive says: nothing is checked here.
        offsets: of the first data byte.
        lengths: of the data in bytes.
    """

    names: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    faults: list[TarFault] = field(default_factory=list)

    def fault(self, offset: int, name: bytes, reason: str) -> None:
        """Add a fault."""
        self.faults.append(TarFault(offset, name, reason))


def walk_tar(file: WindowedFile) -> TarListing:
    """List the regular members of a tar.

    Raises:
        OSError: if the file cannot be read.
    """
    return _Walk(file).run()


class _Walk:
    """One pass over a tar."""

    def __init__(self, file: WindowedFile) -> None:
        self.file = file
        self.listing = TarListing()
        self.pos = 0
        self.extension: Extension | None = None

    def run(self) -> TarListing:
        while True:
            headers = Headers()
            stopped = self._collect(headers)
            bad = headers.first_bad()
            if bad is not None:
                # What lies behind was found by a size that cannot be trusted.
                self.pos = headers.positions[bad]
                headers.cut(bad)
                stopped = "has a header with a wrong checksum"
            self._keep(headers)
            if stopped and not self._step_over(stopped):
                return self.listing

    def _collect(self, headers: Headers) -> str:
        """Walk up to a batch of headers from ``pos``; says why it stopped, if not at the limit."""
        file, pos = self.file, self.pos
        read, raw, positions, sizes = file.read, headers.raw, headers.positions, headers.sizes
        stopped = ""
        for _ in range(_BATCH):
            header = read(pos, BLOCK)
            if len(header) < BLOCK:
                stopped = "is cut off by the end of the file" if header else "end of file"
                break
            size = parse_size(header)
            kind = header[156]
            if size <= 0 and header == ZERO_BLOCK:
                stopped = "end marker"
                break
            if size < 0:
                stopped = "is no tar header"
                break
            raw.append(header)
            positions.append(pos)
            if kind in _REGULAR and self.extension is None:
                sizes.append(size)
            elif kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                sizes.append(-1)
                self._extend(kind, pos + BLOCK, size)
            else:
                if self.extension is not None:
                    headers.extensions[len(sizes)] = self.extension
                    if self.extension.size is not None:
                        size = self.extension.size
                    self.extension = None
                sizes.append(size)
            pos += BLOCK + ((size + BLOCK - 1) & -BLOCK)
        self.pos = pos
        return stopped

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

    def _keep(self, headers: Headers) -> None:
        """Add the members among ``headers`` to the listing."""
        listing, end = self.listing, self.file.size
        members = zip(headers.raw, headers.positions, headers.sizes, headers.names(), strict=True)
        for index, (header, position, size, name) in enumerate(members):
            if size < 0:
                continue
            extension = headers.extensions.get(index) if headers.extensions else None
            if extension is not None:
                name = extension.name if extension.name is not None else name
                if extension.fault:
                    listing.fault(position, name, extension.fault)
                    continue
            kind = header[156]
            if kind in _REGULAR and name[-1:] != b"/":
                offset = position + BLOCK
                if offset + size > end:
                    listing.fault(position, name, f"is cut off at byte {end}, the file's end")
                    continue
                listing.names.append(name)
                listing.offsets.append(offset)
                listing.lengths.append(size)
            elif kind in _REGULAR or kind == _DIRECTORY:
                continue  # a directory; old tars mark it by the slash alone
            else:
                reason = _TYPE_NAMES.get(chr(kind), f"has the unknown type {chr(kind)!r}")
                listing.fault(position, name, reason)

    def _step_over(self, stopped: str) -> bool:
        """Report why the walk stopped and move to the next header; False at the end."""
        file, listing, begin = self.file, self.listing, self.pos
        extension, self.extension = self.extension, None
        if stopped == "end of file":
            listing.fault(file.size, b"", "has no end marker: the tar may have been cut short")
            return False
        if stopped == "end marker":
            following = find_header(file, begin)
            if following is None:
                return False
            listing.fault(begin, b"", f"zeros up to byte {following}, behind which samples go on")
        else:
            name = extension.name if extension and extension.name else _guess_name(file, begin)
            following = find_header(file, begin + 1)
            until = file.size if following is None else following
            listing.fault(begin, name, f"{stopped}: bytes {begin} to {until} cannot be read")
            if following is None:
                return False
        self.pos = following
        return True


def _guess_name(file: WindowedFile, offset: int) -> bytes:
    """What a damaged header seems to be called; empty if it looks like no name."""
    name = header_name(file.read(offset, BLOCK).ljust(BLOCK, b"\0"))
    try:
        return name if name.decode().isprintable() else b""
    except UnicodeDecodeError:
        return b""
