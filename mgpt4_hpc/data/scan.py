"""One shard's samples: members grouped by key, everything else quarantined with its reason."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.tarheader import BLOCK, WindowedFile
from mgpt4_hpc.data.tarwalk import TarListing, walk_tar

PARTS = ("jpg", "json", "txt")
"""What a sample can have; webp and png images count as ``jpg``, whatever they are called."""

_PART_OF_EXTENSION = {
    b"jpg": 0, b"jpeg": 0, b"png": 0, b"webp": 0, b"json": 1, b"txt": 2,
}  # fmt: skip
_MAX_LENGTH = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A sample, or a byte range, that training will not see.

    Attributes:
        key: of the sample; ``@OFFSET`` for a byte range of which no name is left.
        reason: for people.
    """

    key: str
    reason: str


@dataclass(slots=True)
class ShardScan:
    """What the index holds of one shard; n samples in the order of their first members.

    Attributes:
        name: the shard's path relative to the index's root.
        size: in bytes.
        mtime_ns: with the size, tells whether the shard changed since.
        keys: of the samples, UTF-8.
        blocks: uint32[n, 3], where each of PARTS begins, in 512-byte blocks; 0 if absent.
        lengths: uint32[n, 3], in bytes; 0 if absent.
        crcs: uint32[n, 3], CRC32 of each part; None unless verified.
        quarantined: what was left out.
        num_ignored: members that belong to no sample (other extensions, no key).
    """

    name: str
    size: int
    mtime_ns: int
    keys: list[bytes]
    blocks: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    crcs: NDArray[np.uint32] | None = None
    quarantined: list[Quarantined] = field(default_factory=list)
    num_ignored: int = 0

    def digest(self) -> bytes:
        """Of everything that says which sample lies where."""
        state = hashlib.blake2b(digest_size=16)
        state.update(f"{self.name}\0{self.size}\0{len(self.keys)}\0".encode())
        state.update(b"\0".join(self.keys) + b"\0")
        state.update(np.ascontiguousarray(self.blocks, dtype="<u4").tobytes())
        state.update(np.ascontiguousarray(self.lengths, dtype="<u4").tobytes())
        return state.digest()


def scan_shard(path: Path, name: str, *, verify: bool = False, decode: bool = False) -> ShardScan:
    """Read one shard's headers and group its members into samples.

    Args:
        path: the tar.
        name: to record it under.
        verify: also compute the CRC32 of every part.
        decode: also decode every image and parse every json (implies reading everything).

    A shard that cannot be read at all yields no samples and one quarantine entry.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return _unreadable(name, 0, 0, error)
    try:
        stat = os.fstat(fd)
        try:
            listing = walk_tar(WindowedFile(fd, stat.st_size))
            scan = _group(listing, name, stat.st_size, stat.st_mtime_ns)
            if verify or decode:
                _check_contents(fd, scan, decode)
        except OSError as error:
            return _unreadable(name, stat.st_size, stat.st_mtime_ns, error)
        return scan
    finally:
        os.close(fd)


def _unreadable(name: str, size: int, mtime_ns: int, error: OSError) -> ShardScan:
    none = np.zeros((0, len(PARTS)), dtype=np.uint32)
    reason = f"the shard cannot be read: {error.strerror or error}"
    return ShardScan(name, size, mtime_ns, [], none, none, None, [Quarantined("@0", reason)])


def _group(listing: TarListing, name: str, size: int, mtime_ns: int) -> ShardScan:
    samples: dict[bytes, list[int]] = {}  # key -> offset and length of each part, 0 if absent
    faults: dict[bytes, str] = {}
    num_ignored = 0
    unsafe = _unsafe_names(listing.names)
    members = zip(listing.names, listing.offsets, listing.lengths, strict=True)
    for member, offset, length in members:
        if member[:2] == b"./":
            member = member[2:]
        slash = member.rfind(b"/") + 1
        dot = member.find(b".", slash)
        key = member[:dot] if dot > 0 else member
        part = _PART_OF_EXTENSION.get(member[dot + 1 :].lower()) if dot > slash else None
        if part is None:
            num_ignored += 1
            continue
        sample = samples.get(key)
        if sample is None:
            sample = samples[key] = [0, 0, 0, 0, 0, 0]
        if length == 0:
            faults[key] = f"its {PARTS[part]} is empty"
        elif sample[part]:
            faults[key] = f"it has two {PARTS[part]} members"
        elif length > _MAX_LENGTH or offset % BLOCK:
            faults[key] = "it lies behind damage that shifted the tar"
        if unsafe and (reason := name_fault(key)):
            faults[key] = reason
        sample[part] = offset
        sample[part + 3] = length
    quarantined = _fold_faults(listing, samples, faults)
    rows = [(key, sample) for key, sample in samples.items() if key not in faults]
    table = np.asarray([sample for _, sample in rows], dtype=np.int64).reshape(-1, 6)
    return ShardScan(
        name=name,
        size=size,
        mtime_ns=mtime_ns,
        keys=[key for key, _ in rows],
        blocks=(table[:, :3] // BLOCK).astype(np.uint32),
        lengths=table[:, 3:].astype(np.uint32),
        quarantined=quarantined,
        num_ignored=num_ignored,
    )


def _fold_faults(
    listing: TarListing, samples: dict[bytes, list[int]], faults: dict[bytes, str]
) -> list[Quarantined]:
    """Quarantine entries; afterwards ``faults`` holds every key that is not a whole sample."""
    for key, sample in samples.items():
        if key not in faults:
            if not sample[0]:
                faults[key] = "it has no image"
            elif not sample[1] and not sample[2]:
                faults[key] = "it has neither json nor txt"
    entries = {}
    for fault in listing.faults:
        member = fault.name.removeprefix(b"./")
        slash = member.rfind(b"/") + 1
        dot = member.find(b".", slash)
        key = member[:dot] if dot > 0 else member
        whole = key in samples and key not in faults
        if not key or whole:
            # The sample itself is whole: what is damaged is a part that it can do without.
            entries[f"@{fault.offset}"] = f"{show(fault.name)} {fault.reason}".strip()
        else:
            faults[key] = f"its member {show(member)} {fault.reason}"
    result = [Quarantined(show(key), reason) for key, reason in faults.items()]
    return result + [Quarantined(key, reason) for key, reason in entries.items()]


def _unsafe_names(names: list[bytes]) -> bool:
    """Whether any name might be refused by ``name_fault``: one cheap look at all of them."""
    text = b"\n".join(names)
    if not text.isascii() or b".." in text or b"\\" in text or b"//" in text or b"\n/" in text:
        return True
    return text[:1] == b"/" or text.count(b"\n") >= len(names) or not _printable(text)


def _printable(text: bytes) -> bool:
    return text.decode("ascii").replace("\n", "").isprintable()


def name_fault(key: bytes) -> str:
    """Why a key is refused; empty if it is fine.

    Keys are never used as paths here, but they end up in lists that other programs read.
    """
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    if not text.isprintable():
        return "its name holds control characters"
    if text.startswith("/") or "\\" in text or ".." in text.split("/"):
        return "its name points outside the shard"
    return ""


def show(name: bytes) -> str:
    """A name for people's eyes, whatever bytes it has."""
    text = name.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


def _check_contents(fd: int, scan: ShardScan, decode: bool) -> None:
    """Fill in the CRCs; with ``decode`` drop the samples whose contents are unusable."""
    scan.crcs = np.zeros(scan.lengths.shape, dtype=np.uint32)
    bad: dict[int, str] = {}
    for row in range(len(scan.keys)):
        for part in range(len(PARTS)):
            length = int(scan.lengths[row, part])
            if not length:
                continue
            data = os.pread(fd, length, int(scan.blocks[row, part]) * BLOCK)
            if len(data) < length:
                bad[row] = f"its {PARTS[part]} is cut off"
                continue
            scan.crcs[row, part] = zlib.crc32(data)
            if decode and row not in bad and (reason := _content_fault(part, data)):
                bad[row] = reason
    if bad:
        keep = np.asarray([row not in bad for row in range(len(scan.keys))])
        scan.quarantined += [Quarantined(show(scan.keys[r]), why) for r, why in bad.items()]
        scan.keys = [key for row, key in enumerate(scan.keys) if keep[row]]
        scan.blocks, scan.lengths = scan.blocks[keep], scan.lengths[keep]
        scan.crcs = scan.crcs[keep]


def _content_fault(part: int, data: bytes) -> str:
    from mgpt4_hpc.data.caption import CaptionError, caption_of
    from mgpt4_hpc.data.decode import ImageError, check_image

    try:
        if part == 0:
            check_image(data)
        elif part == 1:
            caption_of(data, None)
    except (CaptionError, ImageError) as error:
        return str(error)
    return ""
