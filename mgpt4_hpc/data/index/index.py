"""The shard index: which samples a source has and where their bytes lie.

Built once (``mgpt4 data index``) by walking every tar's headers; training then reads samples by
offset, in any order, from plain webdataset shards without conversion.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, pairwise, starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.images import formats
from mgpt4_hpc.data.index.index_file import IndexWriter, is_index, read_arrays
from mgpt4_hpc.data.index.left_out import LeftOut, add_up, in_words
from mgpt4_hpc.data.index.scan import PARTS, FurtherImages, Quarantined, ShardScan, scan_shard
from mgpt4_hpc.data.tar.header import BLOCK
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import check_replaced
from mgpt4_hpc.retry import retry_storage

_STAT_THREADS = 16
_UNNOTED = "it is no part of a sample (index the shard again to see why)"
_J = TypeVar("_J")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of one part: where in the shard, how many, and their CRC32 if it was computed."""

    offset: int
    length: int
    crc: int | None = None


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one sample lies.

    Attributes:
        parts: at least one of "json" and "txt", and "jpg" if it has an image.
        images: all its images, in order.
    """

    shard: Path
    key: str
    parts: Mapping[str, Span]
    images: tuple[Span, ...]


class ShardIndex:
    """An opened index. Its arrays are mapped: opening costs milliseconds at any size.

    Attributes:
        name: of the source.
        root: folder that the shards' names are relative to.
        digest: hex, of shard names, sizes, keys and spans: of all that defines which sample a
            number stands for. Equal digests mean the same training data in the same order.
        verified: whether CRC32s are known.
    """

    def __init__(
        self, path: Path, root: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, str]
    ) -> None:
        self.path = path
        self.root = root
        self.name = meta["name"]
        self.digest = meta["digest"]
        self.verified = meta["verified"] == "1"
        self.decoded = meta["decoded"] == "1"
        self._arrays = arrays
        self._listing: dict[str, Any] = json.loads(bytes(arrays["listing"]))
        self.shard_names: list[str] = self._listing["shards"]
        self._first = arrays["shard_first"]

    @classmethod
    def open(cls, path: str | Path, root: str | Path | None = None) -> ShardIndex:
        """Open an index file.

        Args:
            path: the file.
            root: where the shards are now; by default where they were, counted from the
                index's own folder if they lay below it.

        Raises:
            DataError: if it cannot be used.
        """
        path = Path(path)
        arrays, meta = read_arrays(path)
        where = Path(root) if root is not None else path.parent / meta["root"]
        return cls(path, where, arrays, meta)

    def __reduce__(self) -> tuple[Callable[..., ShardIndex], tuple[Path, Path]]:
        return (ShardIndex.open, (self.path, self.root))  # mapped again in the other process

    @property
    def num_samples(self) -> int:
        """Usable samples."""
        return int(self._first[-1])

    @property
    def num_shards(self) -> int:
        """Shards, with or without usable samples."""
        return len(self.shard_names)

    @property
    def num_ignored(self) -> int:
        """Members that belong to no sample."""
        return sum(self._listing["num_ignored"])

    @property
    def quarantined(self) -> list[tuple[str, str, str]]:
        """(shard, key, reason) of everything that training will not see."""
        names = self.shard_names
        return [(names[shard], key, why) for shard, key, why in self._listing["quarantined"]]

    @property
    def left_out(self) -> list[LeftOut]:
        """What training will not see, samples and members, by reason and extension."""
        members = chain.from_iterable(map(self._members_left_out, range(self.num_shards)))
        return _left_out_samples(self._listing["quarantined"]) + add_up(members)

    def _members_left_out(self, shard: int) -> list[LeftOut]:
        if "left_out" in self._listing:
            return [LeftOut(*entry) for entry in self._listing["left_out"][shard]]
        count = self._listing["num_ignored"][shard]  # an index made before they were noted
        return [LeftOut(_UNNOTED, "", count, self.shard_names[shard])] if count else []

    def shard_of(self, sample_id: int) -> int:
        """Number of the shard that holds a sample."""
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} of {self.name}: it has {self.num_samples}")
        return int(np.searchsorted(self._first, sample_id, side="right")) - 1

    def samples_of(self, shard: int) -> tuple[int, int]:
        """Numbers of a shard's first sample and of the one behind its last."""
        return int(self._first[shard]), int(self._first[shard + 1])

    def extent(self, first: int, end: int) -> tuple[int, int]:
        """Where the parts of samples ``first`` to ``end`` of one shard begin and end, in bytes."""
        blocks = self._arrays["blocks"][first:end].astype(np.int64)
        lengths = self._arrays["lengths"][first:end]
        there = lengths > 0
        begin = int(blocks[there].min()) * BLOCK
        last = int((blocks * BLOCK + lengths)[there].max())
        low, high = self._further(first).start, self._further(end - 1).stop
        if high > low:
            blocks = self._arrays["more_blocks"][low:high].astype(np.int64)
            lengths = self._arrays["more_lengths"][low:high]
            begin = min(begin, int(blocks.min()) * BLOCK)
            last = max(last, int((blocks * BLOCK + lengths).max()))
        return begin, last

    def shard_path(self, shard: int) -> Path:
        """Path of shard number ``shard``."""
        return self.root / self.shard_names[shard]

    def shard_size(self, shard: int) -> int:
        """Bytes that shard number ``shard`` had when it was indexed."""
        return int(self._arrays["shard_size"][shard])

    def shard_mtime(self, shard: int) -> int:
        """Modification time, in nanoseconds, that a shard had when it was indexed."""
        return int(self._arrays["shard_mtime"][shard])

    def key(self, sample_id: int) -> str:
        """Key of one sample."""
        ends = self._arrays["key_end"]
        begin = int(ends[sample_id - 1]) if sample_id else 0
        return bytes(self._arrays["key_bytes"][begin : int(ends[sample_id])]).decode()

    def locate(self, sample_id: int) -> SampleRef:
        """Where sample number ``sample_id`` lies. Raises IndexError beyond the last."""
        shard = self.shard_of(sample_id)
        blocks = self._arrays["blocks"][sample_id].tolist()
        lengths = self._arrays["lengths"][sample_id].tolist()
        crcs: list[int | None] = [None] * len(PARTS)
        if "crcs" in self._arrays:
            crcs = self._arrays["crcs"][sample_id].tolist()
        parts = {
            part: Span(block * BLOCK, length, crc)
            for part, block, length, crc in zip(PARTS, blocks, lengths, crcs, strict=True)
            if length
        }
        images = [parts["jpg"]] if "jpg" in parts else []
        for number in self._further(sample_id):
            block, length = (
                self._arrays["more_blocks"][number],
                self._arrays["more_lengths"][number],
            )
            crc = int(self._arrays["more_crcs"][number]) if "more_crcs" in self._arrays else None
            images.append(Span(int(block) * BLOCK, int(length), crc))
        return SampleRef(self.shard_path(shard), self.key(sample_id), parts, tuple(images))

    def _further(self, sample_id: int) -> range:
        """Numbers of a sample's images beside its first."""
        if "more_end" not in self._arrays:
            return range(0)
        ends = self._arrays["more_end"]
        return range(int(ends[sample_id - 1]) if sample_id else 0, int(ends[sample_id]))

    def check_shards(self) -> list[str]:
        """Faults of the shards as they are now: missing, or another size. Looks, reads nothing."""
        with ThreadPoolExecutor(_STAT_THREADS) as pool:  # a stat is a round trip on NFS and Lustre
            states = pool.map(self._check_shard, range(self.num_shards))
            return [fault for fault in states if fault]

    def _check_shard(self, shard: int) -> str:
        path, expected = self.shard_path(shard), self.shard_size(shard)
        try:
            size = path.stat().st_size
        except OSError as error:
            return f"{path}: {error.strerror}"
        if size != expected:
            return f"{path}: {size} bytes, but {expected} when it was indexed"
        return ""

    def scan_of(self, shard: int) -> ShardScan:
        """The stored scan of one shard, as ``scan_shard`` returned it (for incremental builds)."""
        arrays = self._arrays
        begin, end = int(self._first[shard]), int(self._first[shard + 1])
        ends = [int(arrays["key_end"][begin - 1]) if begin else 0]
        ends += arrays["key_end"][begin:end].tolist()
        names = bytes(arrays["key_bytes"][ends[0] : ends[-1]])
        return ShardScan(
            name=self.shard_names[shard],
            size=self.shard_size(shard),
            mtime_ns=self.shard_mtime(shard),
            keys=[names[low - ends[0] : high - ends[0]] for low, high in pairwise(ends)],
            blocks=arrays["blocks"][begin:end],
            lengths=arrays["lengths"][begin:end],
            crcs=arrays["crcs"][begin:end] if "crcs" in arrays else None,
            quarantined=[Quarantined(key, why) for key, why in self._quarantined_by_shard[shard]],
            left_out=self._members_left_out(shard),
            further=self._further_of(begin, end),
        )

    def _further_of(self, begin: int, end: int) -> FurtherImages | None:
        low, high = (
            (self._further(begin).start, self._further(end - 1).stop) if end > begin else (0, 0)
        )
        if low == high:
            return None
        arrays = self._arrays
        return FurtherImages(
            ends=arrays["more_end"][begin:end] - low,
            blocks=arrays["more_blocks"][low:high],
            lengths=arrays["more_lengths"][low:high],
            crcs=arrays["more_crcs"][low:high] if "more_crcs" in arrays else None,
        )

    @cached_property
    def _quarantined_by_shard(self) -> list[list[tuple[str, str]]]:
        result: list[list[tuple[str, str]]] = [[] for _ in self.shard_names]
        for shard, key, reason in self._listing["quarantined"]:
            result[shard].append((key, reason))
        return result


@dataclass(frozen=True)
class ScanOptions:
    """How shards are read for an index.

    Attributes:
        verify: store a CRC32 of every part.
        decode: decode every image and parse every json; what fails is quarantined.
        texts: parse every text, though no image is decoded. Nothing of an index is reused then.
        workers: processes.
        storage_may_fail: quarantine shards that cannot be read, also for reasons that may pass: the
            user looks at what was quarantined. Otherwise each of these is waited for by itself.
    """

    verify: bool = False
    decode: bool = False
    workers: int = 1
    storage_may_fail: bool = True
    texts: bool = False


def build_index(
    shards: Sequence[Path],
    out: Path,
    options: ScanOptions = ScanOptions(),
    *,
    name: str | None = None,
    reuse: Sequence[Path] = (),
    may_be_empty: bool = True,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ShardIndex, int]:
    """Index tar shards into the file ``out``, atomically.

    An existing index is brought up to date: only shards that are new or differ in size
    or modification time changed are read again.

    Args:
        shards: the tars, in the order that defines sample numbers.
        out: the index file.
        options: how the shards are read.
        name: of the source; by default the file's name without its suffix.
        reuse: other indexes of the same shards, over which to look for unchanged ones before
            reading: the parts that the tasks of a Slurm array made, for example.
        may_be_empty: write an index also if no sample is usable; a part of one may be.
        on_shard: called with (shards done, shards in all) after each scan and each reuse check.

    Returns:
        The index, and how many of its shards had not changed and were taken from an older one.

    Raises:
        DataError: if no shard is there, or no usable sample and ``may_be_empty`` is not set;
            nothing changed.
        StorageTrouble: unless ``options.storage_may_fail``, if a shard cannot be read for half a
            minute; nothing changed.
        ConfigError: if ``out`` is there and is no index: nothing else is replaced.
    """
    if not shards:
        raise DataError("no shard to index", fix="give a folder, a pattern or a list of *.tar")
    check_replaced(out, kind="a shard index", is_own=is_index)
    paths = [_absolute(shard) for shard in shards]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    known: dict[Path, tuple[ShardIndex, int]] = {}
    for older in () if options.texts else (*reuse, out):
        known |= _reusable(older, options)
    name = name or out.name.split(".")[0]
    checked = {"verified": options.verify, "decoded": options.decode}
    with IndexWriter(out, name=name, root=root, **checked) as writer:
        jobs = _jobs(paths, root, known, options.storage_may_fail, on_shard)
        scans = _scan_all(jobs, partial(_scan_job, options=options), options.workers)
        for done, (scan, (_, shard_name, _)) in enumerate(zip(scans, jobs, strict=True), start=1):
            scan.name = shard_name  # a reused one may have had another root
            writer.add(scan)
            on_shard(done, len(jobs))
        if not writer.num_samples and not may_be_empty:
            members = add_up(starmap(LeftOut, chain.from_iterable(writer.left_out)))
            left_out = _left_out_samples(writer.quarantined) + members
            raise no_samples(f"the shards of {name!r}", left_out)
        writer.commit()
    return ShardIndex.open(out), sum(old is not None for _, _, old in jobs)


def _jobs(
    paths: Sequence[Path],
    root: Path,
    known: Mapping[Path, tuple[ShardIndex, int]],
    storage_may_fail: bool,
    on_shard: Callable[[int, int], None],
) -> list[_Job]:
    """Each shard with its stored name, and its scan where an index has an unchanged one."""
    jobs: list[_Job] = []
    for path in paths:
        old = _unchanged(path, known.get(path), storage_may_fail)
        jobs.append((path, os.path.relpath(path, root), old))
        if path in known:
            on_shard(0, len(paths))
    return jobs


def no_samples(what: str, left_out: Sequence[LeftOut]) -> DataError:
    """The error for shards without a usable sample: which names they have, and which are read."""
    return DataError(
        f"{what} have no usable sample",
        why=in_words(left_out) or "they are empty",
        fix="a sample is an image and a text of one name without dots: KEY.jpg (or "
        f".{', .'.join(formats.USUAL[1:])}, .{', .'.join(formats.FURTHER)}) and "
        "KEY.json with a caption, or KEY.txt",
    )


def _left_out_samples(quarantined: Iterable[tuple[int, str, str]]) -> list[LeftOut]:
    return add_up(LeftOut(reason, "", 1, key) for _, key, reason in quarantined)


_Job = tuple[Path, str, tuple[ShardIndex, int] | None]


def _scan_job(job: tuple[Path, str], *, options: ScanOptions) -> ShardScan:
    return _waiting_for(
        lambda: scan_shard(
            *job,
            verify=options.verify,
            decode=options.decode,
            texts=options.texts,
            storage_may_fail=options.storage_may_fail,
        )
    )


def _waiting_for(action: Callable[[], _T]) -> _T:
    """What is read of one shard; who calls again would read all those before it once more."""
    # Not to stdout, which may be JSON for a script.
    return retry_storage(action, say=lambda message: print(message, file=sys.stderr))


def _scan_all(
    jobs: Sequence[_Job], scan: Callable[[tuple[Path, str]], ShardScan], workers: int
) -> Iterator[ShardScan]:
    """Scans in the order of the jobs, unchanged ones from the old index."""
    fresh = map_shards(scan, [(path, name) for path, name, old in jobs if old is None], workers)
    for _, _, old in jobs:
        yield old[0].scan_of(old[1]) if old is not None else next(fresh)


def map_shards(action: Callable[[_J], _T], jobs: Sequence[_J], workers: int) -> Iterator[_T]:
    """What ``action`` returns for each job, in their order, from up to ``workers`` processes."""
    if workers > 1 and len(jobs) > 1:
        # spawn: the caller may have threads (a progress bar), with which fork does not mix.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(action, jobs)
    else:
        yield from map(action, jobs)


def _reusable(out: Path, options: ScanOptions) -> dict[Path, tuple[ShardIndex, int]]:
    """Shards of an index that is there, if it was checked in the same way."""
    if not out.exists():
        return {}
    try:
        old = ShardIndex.open(out)
    except DataError:
        return {}
    if (old.decoded, old.verified) != (options.decode, options.verify):
        return {}
    return {_absolute(old.shard_path(shard)): (old, shard) for shard in range(old.num_shards)}


def _unchanged(
    path: Path, known: tuple[ShardIndex, int] | None, storage_may_fail: bool
) -> tuple[ShardIndex, int] | None:
    if known is None:
        return None
    index, shard = known
    try:
        stat = path.stat() if storage_may_fail else _waiting_for(path.stat)
    except OSError:
        return None
    same = (stat.st_size, stat.st_mtime_ns) == (index.shard_size(shard), index.shard_mtime(shard))
    return known if same else None


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
