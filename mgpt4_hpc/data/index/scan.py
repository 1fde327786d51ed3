"""One shard's samples: members grouped by key, everything else quarantined with its reason.

A sample may have further images, ``KEY.1.jpg``, ``KEY.2.jpg`` and so on. One that is a conversation
may have none; which sample that is stands in its json, so the json of a sample without an image is
read, and so is every json of a shard whose first json is a conversation.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.images import formats
from mgpt4_hpc.data.index.left_out import LeftOut, add_up
from mgpt4_hpc.data.index.member_names import name_fault, show, split_name
from mgpt4_hpc.data.tar.header import (
    BLOCK,
    LARGE_WINDOW,
    SMALL_WINDOW,
    Int64,
    WindowedFile,
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
_NUMBERED_IMAGE = re.compile(
    rb"([1-9][0-9]{0,3})\.(?:" + b"|".join(map(str.encode, formats.READ)) + rb")"
)
_MOST_EXTENSIONS = 64
"""Kept apart in one shard; a name may end in anything."""
_PLAIN = (string.ascii_letters + string.digits + "_-. ").encode()
"""Names of nothing but these need no closer look."""
_MAX_LENGTH = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A sample, or a byte range, that training will not see.

    Attributes:
        key: of the sample; ``@OFFSET`` for a byte range without a readable name.
        reason: for people.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class FurtherImages:
    """Images of n samples beside the first of each; m in all.

    Attributes:
        ends: int64[n], end of each sample's images among all.
        blocks, lengths: uint32[m], as of ``ShardScan``.
        crcs: uint32[m]; None unless verified.
    """

    ends: NDArray[np.int64]
    blocks: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    crcs: NDArray[np.uint32] | None = None

    def rows(self, keep: NDArray[np.bool_]) -> FurtherImages:
        """Those of some of the samples, bool[n]."""
        counts = np.diff(self.ends, prepend=0)
        each = np.repeat(keep, counts)
        crcs = None if self.crcs is None else self.crcs[each]
        ends = np.cumsum(counts[keep])
        return FurtherImages(ends, self.blocks[each], self.lengths[each], crcs)

    def of(self, row: int) -> range:
        """Numbers of one sample's images."""
        return range(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))


@dataclass(slots=True)
class ShardScan:
    """What the index holds of one shard; n samples in the order of their first members.

    Attributes:
        name: the shard's path relative to the index's root.
        size: in bytes.
        mtime_ns: with the size, shows whether the shard changed since.
        keys: of the samples, UTF-8.
        blocks: uint32[n, 3], where each of PARTS begins, in 512-byte blocks; 0 if absent.
        lengths: uint32[n, 3], in bytes; 0 if absent.
        crcs: uint32[n, 3], CRC32 of each part; None unless verified.
        quarantined: what was left out.
        left_out: members that belong to no sample (other extensions, no key).
        further: images beside the first of each; None if no sample has any.
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
    further: FurtherImages | None = None

    @property
    def num_ignored(self) -> int:
        """Members that belong to no sample."""
        return sum(entry.count for entry in self.left_out)

    def digest(self) -> bytes:
        """Digest of everything that says which sample lies where."""
        state = hashlib.blake2b(digest_size=16)
        state.update(f"{self.name}\0{self.size}\0{len(self.keys)}\0".encode())
        state.update(b"\0".join(self.keys) + b"\0")
        state.update(np.ascontiguousarray(self.blocks, dtype="<u4").tobytes())
        state.update(np.ascontiguousarray(self.lengths, dtype="<u4").tobytes())
        if self.further is not None:
            state.update(np.ascontiguousarray(self.further.ends, dtype="<i8").tobytes())
            for spans in (self.further.blocks, self.further.lengths):
                state.update(np.ascontiguousarray(spans, dtype="<u4").tobytes())
        return state.digest()

    def drop(self, bad: Mapping[int, str]) -> None:
        """Quarantine samples, by row, with their reasons."""
        if not bad:
            return
        keep = np.asarray([row not in bad for row in range(len(self.keys))], dtype=np.bool_)
        self.quarantined += [Quarantined(show(self.keys[row]), why) for row, why in bad.items()]
        self.keys = [key for row, key in enumerate(self.keys) if keep[row]]
        self.blocks, self.lengths = self.blocks[keep], self.lengths[keep]
        self.crcs = None if self.crcs is None else self.crcs[keep]
        if self.further is not None:
            further = self.further.rows(keep)
            self.further = further if len(further.blocks) else None

    def num_images(self, row: int) -> int:
        """Images of one sample."""
        further = 0 if self.further is None else len(self.further.of(row))
        return further + int(self.lengths[row, 0] > 0)


def scan_shard(
    path: Path,
    name: str,
    *,
    verify: bool = False,
    decode: bool = False,
    texts: bool = False,
    storage_may_fail: bool = True,
) -> ShardScan:
    """Read one shard's headers and group its members into samples.

    Args:
        path: the tar.
        name: to record it under.
        verify: also compute the CRC32 of every part.
        decode: also decode every image and parse every text.
        texts: also parse every text.
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
            _check_texts(fd, scan, every=decode or texts)
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
    further: FurtherImages | None = None
    keys = _keys_of_plain_triples(listing)
    if keys:
        where = np.arange(3 * len(keys)).reshape(-1, 3)
    else:
        collected, left_out = _collect_samples(listing)
        samples, faults = collected.samples, collected.faults
        quarantined = _fold_faults(listing, collected)
        keys = [key for key in samples if key not in faults]
        where = np.asarray([samples[key] for key in keys], dtype=np.int64).reshape(-1, 3)
        further = _further(listing, [collected.images.get(key, {}) for key in keys])

    def column(values: Int64) -> NDArray[np.uint32]:
        """The members' values as [samples, (image, json, txt)]."""
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
        further=further,
    )


def _further(listing: TarListing, images: Sequence[Mapping[int, int]]) -> FurtherImages | None:
    """Where the further images of each sample lie; ``images`` has their members by number."""
    if not any(images):
        return None
    where = np.asarray([own[number] for own in images for number in sorted(own)], dtype=np.int64)
    return FurtherImages(
        ends=np.cumsum([len(own) for own in images], dtype=np.int64),
        blocks=(listing.offsets[where] // BLOCK).astype(np.uint32),
        lengths=listing.lengths[where].astype(np.uint32),
        crcs=None if listing.crcs is None else listing.crcs[where].astype(np.uint32),
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
) -> tuple[_Samples, list[LeftOut]]:
    """Members by key, and what belongs to no sample."""
    collected = _Samples(listing)
    further: list[tuple[int, bytes, bytes]] = []
    numbered: list[tuple[int, bytes, int]] = []
    strange: dict[bytes, list[bytes]] = {}
    for number, member in enumerate(listing.names):
        key, extension = split_name(member)
        part = _PART_OF_EXTENSION.get(extension)
        if part is not None:
            collected.take(key, part, number)
        elif extension in _FURTHER_IMAGES:
            further.append((number, key, extension))
        elif image := _NUMBERED_IMAGE.fullmatch(extension):
            numbered.append((number, key, int(image[1])))
        else:
            strange.setdefault(extension, []).append(member)
    with_parts = {*collected.samples, *(key for _, key, _ in further)}
    for number, key, place in numbered:
        if key in with_parts:
            collected.take(key, 0, number, place)
        else:
            member = listing.names[number]
            strange.setdefault(split_name(member)[1], []).append(member)
    left_out = [
        entry for extension, names in strange.items() for entry in _left_out(extension, names)
    ]
    usual = {key for key, sample in collected.samples.items() if sample[0] >= 0}
    for number, key, extension in further:
        if key in usual:
            name = show(listing.names[number])
            left_out.append(LeftOut("its sample has another image", extension.decode(), 1, name))
        else:
            collected.take(key, 0, number)
    return collected, _few_extensions(left_out)


class _Samples:
    """A tar's members, put together by key.

    Attributes:
        samples: number of each part's member, -1 if absent.
        images: of some samples the members of further images, by the images' numbers.
        faults: why a sample is none.
    """

    def __init__(self, listing: TarListing) -> None:
        self.samples: dict[bytes, list[int]] = {}
        self.images: dict[bytes, dict[int, int]] = {}
        self.faults: dict[bytes, str] = {}
        self._unsafe = bool(b"".join(listing.names).translate(None, _PLAIN))
        self._lengths = listing.lengths.tolist()
        self._aligned = (listing.offsets % BLOCK == 0).tolist()

    def take(self, key: bytes, part: int, number: int, place: int = 0) -> None:
        """Member ``number`` is this part of sample ``key``; or its image number ``place``."""
        sample = self.samples.get(key)
        if sample is None:
            sample = self.samples[key] = [-1, -1, -1]
        images = self.images.setdefault(key, {}) if place else {}
        name = f"{place}.{PARTS[part]}" if place else PARTS[part]
        length = self._lengths[number]
        if length == 0:
            self.faults[key] = f"its {name} is empty"
        elif place in images or (not place and sample[part] >= 0):
            self.faults[key] = f"it has two {name} members"
        elif length > _MAX_LENGTH:
            self.faults[key] = f"its {name} has {length} bytes"
        elif not self._aligned[number]:
            self.faults[key] = "it lies behind damage that shifted the tar"
        if self._unsafe and (reason := name_fault(key)):
            self.faults[key] = reason
        if place:
            images[place] = number
        else:
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
        LeftOut(reason, show(last), len(members), show(members[0]))
        for reason, members in reasons.items()
        if members
    ]


def _few_extensions(entries: list[LeftOut]) -> list[LeftOut]:
    """Added up, and the rare extensions together, so that an index stays small."""
    total = add_up(entries)
    rare = [replace(entry, extension="...") for entry in total[_MOST_EXTENSIONS:]]
    return add_up([*total[:_MOST_EXTENSIONS], *rare])


def _fold_faults(listing: TarListing, collected: _Samples) -> list[Quarantined]:
    """Quarantine entries; afterwards ``faults`` holds every key that is not a whole sample.

    Without an image a json alone may be a whole sample: ``_check_texts`` decides.
    """
    samples, faults = collected.samples, collected.faults
    for key, (image, record, txt) in samples.items():
        if key in faults:
            continue
        numbered = collected.images.get(key, {})
        if image < 0 and numbered:
            faults[key] = "it has no first image, KEY.jpg"
        elif image < 0 and record < 0:
            faults[key] = "it has no image"
        elif record < 0 and txt < 0:
            faults[key] = "it has neither json nor txt"
        elif numbered and max(numbered) != len(numbered):
            faults[key] = f"its images are not numbered from 1 to {len(numbered)}"
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


def _check_texts(fd: int, scan: ShardScan, *, every: bool) -> None:
    """Drop the samples whose text is unusable or does not fit their images, of those looked at.

    Args:
        fd: of the shard.
        scan: of it.
        every: look at all. Otherwise at those without an image, and at all jsons if the first is
            a conversation: captions are not read only to make an index.
    """
    from mgpt4_hpc.data.index.caption import CaptionError, holds_conversation, sample_text

    def member(row: int, part: int) -> bytes | None:
        """Bytes of a sample's image (0), json (1) or txt (2); None if it has none."""
        length = int(scan.lengths[row, part])
        return os.pread(fd, length, int(scan.blocks[row, part]) * BLOCK) if length else None

    has_json = scan.lengths[:, 1] > 0
    look = np.ones(len(scan.keys), bool) if every else scan.lengths[:, 0] == 0
    alone = np.flatnonzero(has_json & (scan.lengths[:, 2] == 0))
    if not every and len(alone) and holds_conversation(member(int(alone[0]), 1) or b""):
        look |= has_json
    bad: dict[int, str] = {}
    for row in np.flatnonzero(look).tolist():
        try:
            sample_text(member(row, 1), member(row, 2), scan.num_images(row))
        except CaptionError as error:
            # What a json without an image lacks is the image, unless it is a conversation.
            captioned = not scan.num_images(row) and not holds_conversation(member(row, 1) or b"")
            bad[row] = "it has no image" if captioned else str(error)
    scan.drop(bad)


def _decode_all(fd: int, scan: ShardScan) -> None:
    """Drop the samples with unusable images."""
    from mgpt4_hpc.data.images.decode import ImageError, decode_rgb

    bad: dict[int, str] = {}
    for row in range(len(scan.keys)):
        spans = [(int(scan.blocks[row, 0]), int(scan.lengths[row, 0]))]
        if scan.further is not None:
            spans += [
                (int(scan.further.blocks[number]), int(scan.further.lengths[number]))
                for number in scan.further.of(row)
            ]
        try:
            for block, length in spans:
                if length:
                    decode_rgb(os.pread(fd, length, block * BLOCK))
        except ImageError as error:
            bad[row] = str(error)
    scan.drop(bad)
