"""One shard's samples: members grouped by key, everything else quarantined with its reason."""

from __future__ import annotations

import hashlib
import os
import string
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.images import formats
from mgpt4_hpc.data.index.left_out import LeftOut, add_up
from mgpt4_hpc.data.tar.header import (
    BLOCK,
    LARGE_WINDOW,
    SMALL_WINDOW,
    Int64,
    WindowedFile,
    header_name,
    parse_size,
)
from mgpt4_hpc.data.tar.walk import TarListing, walk_tar
from mgpt4_hpc.retry import is_transient

PARTS = ("jpg", "json", "txt")
"""What a sample can have; images of any kind count as ``jpg``, whatever they are called."""

_PART_OF_EXTENSION = {
    **{name.encode(): 0 for name in formats.USUAL}, b"json": 1, b"txt": 2,
}  # fmt: skip
_FURTHER_IMAGES = frozenset(name.encode() for name in formats.FURTHER)
_UNREAD_IMAGES = frozenset(name.encode() for name in formats.UNREAD)
_READ = frozenset({*_PART_OF_EXTENSION, *_FURTHER_IMAGES})
_MOST_EXTENSIONS = 64
"""Told apart in one shard; a name may end in anything."""
_PLAIN = (string.ascii_letters + string.digits + "_-. ").encode()
"""Names of nothing but these need no closer look."""
_MAX_LENGTH = 2**32 - 1
_PLAIN_NAME = 90
"""Longest key whose members' names surely fit into a header."""


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
        left_out: members that belong to no sample (other extensions, no key).
    """

    name: str
    size: int
    mtime_ns: int
    keys: list[bytes]
    blocks: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    crcs: NDArray[np.uint32] | None = None
    quarantined: list[Quarantined] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def num_ignored(self) -> int:
        """Members that belong to no sample."""
        return sum(entry.count for entry in self.left_out)

    def digest(self) -> bytes:
        """Of everything that says which sample lies where."""
        state = hashlib.blake2b(digest_size=16)
        state.update(f"{self.name}\0{self.size}\0{len(self.keys)}\0".encode())
        state.update(b"\0".join(self.keys) + b"\0")
        state.update(np.ascontiguousarray(self.blocks, dtype="<u4").tobytes())
        state.update(np.ascontiguousarray(self.lengths, dtype="<u4").tobytes())
        return state.digest()


def scan_shard(
    path: Path,
    name: str,
    *,
    verify: bool = False,
    decode: bool = False,
    storage_may_fail: bool = True,
) -> ShardScan:
    """Read one shard's headers and group its members into samples.

    Args:
        path: the tar.
        name: to record it under.
        verify: also compute the CRC32 of every part.
        decode: also decode every image and parse every caption.
        storage_may_fail: a shard that cannot be read yields no samples and one quarantine entry,
            whatever the reason.

    Raises:
        OSError: unless ``storage_may_fail``, an error that may pass, with the shard's name.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.fstat(fd)
            window = LARGE_WINDOW if verify else SMALL_WINDOW
            listing = walk_tar(WindowedFile(fd, stat.st_size, window), with_crcs=verify)
            scan = _group(listing, name, stat.st_size, stat.st_mtime_ns)
            if decode:
                _decode_all(fd, scan)
            return scan
        finally:
            os.close(fd)
    except OSError as error:
        if is_transient(error) and not storage_may_fail:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return _unreadable(name, error)


def _unreadable(name: str, error: OSError) -> ShardScan:
    """Size and time are left 0, so that an incremental build tries the shard again."""
    none = np.zeros((0, len(PARTS)), dtype=np.uint32)
    reason = f"the shard cannot be read: {error.strerror or error}"
    return ShardScan(name, 0, 0, [], none, none, none, [Quarantined("@0", reason)])


def _group(listing: TarListing, name: str, size: int, mtime_ns: int) -> ShardScan:
    quarantined: list[Quarantined] = []
    left_out: list[LeftOut] = []
    keys = _keys_of_plain_triples(listing)
    if keys:
        where = np.arange(3 * len(keys)).reshape(-1, 3)
    else:
        samples, faults, left_out = _collect_samples(listing)
        quarantined = _fold_faults(listing, samples, faults)
        keys = [key for key in samples if key not in faults]
        where = np.asarray([samples[key] for key in keys], dtype=np.int64).reshape(-1, 3)

    def column(values: Int64) -> NDArray[np.uint32]:
        # A last element that index -1 finds: absent parts become 0.
        return np.append(values, 0)[where].astype(np.uint32)

    return ShardScan(
        name=name,
        size=size,
        mtime_ns=mtime_ns,
        keys=keys,
        blocks=column(listing.offsets // BLOCK),
        lengths=column(listing.lengths),
        crcs=None if listing.crcs is None else column(listing.crcs),
        quarantined=quarantined,
        left_out=left_out,
    )


def _keys_of_plain_triples(listing: TarListing) -> list[bytes]:
    """The keys, if the shard is nothing but KEY.jpg, KEY.json, KEY.txt in turn; else nothing.

    Saves two thirds of the grouping's time on img2dataset's shards; whatever is odd goes the
    general way.
    """
    names, lengths = listing.names, listing.lengths
    if listing.faults or not names or len(names) % 3:
        return []
    keys = [name[:-4] for name in names[::3]]
    usual = [key + b".jpg\n" + key + b".json\n" + key + b".txt" for key in keys]
    text = b"\n".join(names)
    if text != b"\n".join(usual) or len(text.translate(None, _PLAIN)) != len(names) - 1:
        return []
    if b"." in b"".join(keys) or len(set(keys)) != len(keys) or b"" in keys:
        return []
    whole = lengths.min() > 0 and lengths.max() <= _MAX_LENGTH
    return keys if whole and not (listing.offsets % BLOCK).any() else []


def _collect_samples(
    listing: TarListing,
) -> tuple[dict[bytes, list[int]], dict[bytes, str], list[LeftOut]]:
    """Members by key: number of each part's member, -1 if absent; faults; what belongs to none."""
    found = _Samples(listing)
    further: list[tuple[int, bytes, bytes]] = []
    strange: dict[bytes, list[bytes]] = {}
    for number, member in enumerate(listing.names):
        key, extension = split_name(member)
        part = _PART_OF_EXTENSION.get(extension)
        if part is not None:
            found.take(key, part, number)
        elif extension in _FURTHER_IMAGES:
            further.append((number, key, extension))
        else:
            strange.setdefault(extension, []).append(member)
    left_out = [
        entry for extension, names in strange.items() for entry in _left_out(extension, names)
    ]
    usual = {key for key, sample in found.samples.items() if sample[0] >= 0}
    for number, key, extension in further:
        if key in usual:
            name = show(listing.names[number])
            left_out.append(LeftOut("its sample has another image", extension.decode(), 1, name))
        else:
            found.take(key, 0, number)
    return found.samples, found.faults, _few_extensions(left_out)


class _Samples:
    """A tar's members, put together by key."""

    def __init__(self, listing: TarListing) -> None:
        self.samples: dict[bytes, list[int]] = {}
        self.faults: dict[bytes, str] = {}
        self._unsafe = bool(b"".join(listing.names).translate(None, _PLAIN))
        self._lengths = listing.lengths.tolist()
        self._aligned = (listing.offsets % BLOCK == 0).tolist()

    def take(self, key: bytes, part: int, number: int) -> None:
        """Member ``number`` is this part of sample ``key``."""
        sample = self.samples.get(key)
        if sample is None:
            sample = self.samples[key] = [-1, -1, -1]
        length = self._lengths[number]
        if length == 0:
            self.faults[key] = f"its {PARTS[part]} is empty"
        elif sample[part] >= 0:
            self.faults[key] = f"it has two {PARTS[part]} members"
        elif length > _MAX_LENGTH:
            self.faults[key] = f"its {PARTS[part]} has {length} bytes"
        elif not self._aligned[number]:
            self.faults[key] = "it lies behind damage that shifted the tar"
        if self._unsafe and (reason := name_fault(key)):
            self.faults[key] = reason
        sample[part] = number


def _left_out(extension: bytes, names: list[bytes]) -> list[LeftOut]:
    """Why members of one extension are no part of any sample."""
    last = extension.rpartition(b".")[2]
    if not extension:
        hidden = [name for name in names if name.rpartition(b"/")[2].startswith(b".")]
        plain = [name for name in names if not name.rpartition(b"/")[2].startswith(b".")]
        reasons = {"its name begins with a dot": hidden, "its name has no extension": plain}
    elif last in _READ and last != extension:
        reasons = {"its name has a dot before the extension, where webdataset ends the key": names}
    elif last in _UNREAD_IMAGES:
        reasons = {"its image format is not read": names}
    else:
        reasons = {"training reads no such members": names}
    return [
        LeftOut(reason, show(last), len(found), show(found[0]))
        for reason, found in reasons.items()
        if found
    ]


def _few_extensions(entries: list[LeftOut]) -> list[LeftOut]:
    """Added up, and the rare extensions together, so that an index stays small."""
    total = add_up(entries)
    rare = [replace(entry, extension="...") for entry in total[_MOST_EXTENSIONS:]]
    return add_up([*total[:_MOST_EXTENSIONS], *rare])


def split_name(member: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case extension of a member, as webdataset splits: at the base name's first dot.

    Without an extension the key is the whole name.
    """
    if member[:2] == b"./":
        member = member[2:]
    slash = member.rfind(b"/") + 1
    dot = member.find(b".", slash)
    if dot <= slash:
        return member, b""
    return member[:dot], member[dot + 1 :].lower()


def belongs(header: bytes, key: str, length: int) -> bool:
    """Whether a tar header can be that of a sample's part of ``length`` bytes.

    Long names and those beyond ASCII stand in an extension header before it: of these the size
    alone is compared.
    """
    if len(header) != BLOCK or parse_size(header) != length:
        return False
    plain = key.isascii() and len(key) <= _PLAIN_NAME
    return not plain or split_name(header_name(header))[0] == key.encode()


def _fold_faults(
    listing: TarListing, samples: dict[bytes, list[int]], faults: dict[bytes, str]
) -> list[Quarantined]:
    """Quarantine entries; afterwards ``faults`` holds every key that is not a whole sample."""
    for key, sample in samples.items():
        if key not in faults:
            if sample[0] < 0:
                faults[key] = "it has no image"
            elif sample[1] < 0 and sample[2] < 0:
                faults[key] = "it has neither json nor txt"
    entries = {}
    for fault in listing.faults:
        key, _ = split_name(fault.name)
        whole = key in samples and key not in faults
        if not key or whole:
            # The sample itself is whole: what is damaged is a part that it can do without.
            entries[f"@{fault.offset}"] = f"{show(fault.name)} {fault.reason}".strip()
        else:
            faults[key] = f"its member {show(fault.name)} {fault.reason}"
    result = [Quarantined(show(key), reason) for key, reason in faults.items()]
    return result + [Quarantined(key, reason) for key, reason in entries.items()]


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


def _decode_all(fd: int, scan: ShardScan) -> None:
    """Drop the samples whose contents are unusable."""
    bad: dict[int, str] = {}
    for row in range(len(scan.keys)):
        jpg, record, txt = (
            os.pread(fd, int(length), int(block) * BLOCK) if length else None
            for block, length in zip(scan.blocks[row], scan.lengths[row], strict=True)
        )
        if reason := _content_fault(jpg or b"", record, txt):
            bad[row] = reason
    if bad:
        keep = np.asarray([row not in bad for row in range(len(scan.keys))])
        scan.quarantined += [Quarantined(show(scan.keys[row]), why) for row, why in bad.items()]
        scan.keys = [key for row, key in enumerate(scan.keys) if keep[row]]
        scan.blocks, scan.lengths = scan.blocks[keep], scan.lengths[keep]
        scan.crcs = None if scan.crcs is None else scan.crcs[keep]


def _content_fault(jpg: bytes, record: bytes | None, txt: bytes | None) -> str:
    from mgpt4_hpc.data.images.decode import ImageError, check_image
    from mgpt4_hpc.data.index.caption import CaptionError, caption_of

    try:
        check_image(jpg)
        caption_of(record, txt)
    except (CaptionError, ImageError) as error:
        return str(error)
    return ""
