"""Samples by number: one ``pread`` each, through a small cache of open shards.

A read that fails for a passing reason (a file server that stumbles, a stale handle) is tried
again for half a minute and then raises StorageTrouble: another start may read it, and no other
sample replaces it. So is a read from a shard that is written to meanwhile: it is opened again, and
its size and the tar headers of the sample's parts decide. Damaged bytes and a deleted shard raise
BadSampleError, and the caller puts another sample in its place.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from mgpt4_hpc.data.index.caption import CaptionError, NoCaptionInJson, sample_text
from mgpt4_hpc.data.index.index import SampleRef, ShardIndex, Span
from mgpt4_hpc.data.index.member_names import belongs
from mgpt4_hpc.data.reading.local_copies import Staged
from mgpt4_hpc.data.tar.header import BLOCK
from mgpt4_hpc.errors import StorageTrouble
from mgpt4_hpc.prompts import Dialogue
from mgpt4_hpc.retry import PAUSES_S, TRANSIENT

MAX_OPEN_SHARDS = 160
"""More than the 64 blocks, hence at most 64 shards, of one window, for two sources."""
RETRY_PAUSES_S = (0.1, 0.5, *PAUSES_S)
_FELLOWS_PAUSE_S = 2.0
"""The longest pause for a missing shard, once another one is known to be deleted."""
_SHUN_S = 60.0
"""For how long a shard that cannot be used is not asked again."""
_MAX_GAP = 64 * 1024
PASSING = TRANSIENT | {errno.ENXIO}
"""What passes, and else is the storage's trouble. A shard may also be missing for a moment."""


class BadSampleError(Exception):
    """A sample that cannot be used.

    Attributes:
        key: of the sample.
        shard: that should hold it.
        reason: for people.
        errno: of the shard's file, if it could not be opened or read; None if the sample itself
            is bad.
    """

    def __init__(self, key: str, shard: Path, reason: str, errno: int | None = None) -> None:
        super().__init__(f"{key} in {shard}: {reason}")
        self.key = key
        self.shard = shard
        self.reason = reason
        self.errno = errno


@dataclass(frozen=True, slots=True)
class RawSample:
    """One sample as stored.

    Attributes:
        key: its name.
        images: compressed, unchanged. A caption is of the first; a conversation has all.
        text: a caption, unchanged, or a conversation.
    """

    key: str
    images: tuple[bytes, ...]
    text: str | Dialogue

    @property
    def caption(self) -> str:
        """The text for people: a conversation as its transcript."""
        return self.text if isinstance(self.text, str) else self.text.transcript()


class SampleReader:
    """Reads samples of several sources.

    Args:
        indexes: the sources' indexes; the position in this list is the source id.
        max_open: shards kept open.
        pauses_s: before the second, third, ... attempt of a failed read.
        sleep, clock: replaced in tests.
        staged: copies on this node, tried first.

    A reader may be sent to another process; open files stay behind.
    """

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        *,
        max_open: int = MAX_OPEN_SHARDS,
        pauses_s: Sequence[float] = RETRY_PAUSES_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        staged: Staged | None = None,
    ) -> None:
        self._staged = staged
        self._indexes = list(indexes)
        self._max_open = max_open
        self._pauses_s = tuple(pauses_s)
        self._sleep = sleep
        self._clock = clock
        self._open: OrderedDict[tuple[int, int], tuple[int, _State]] = OrderedDict()
        self._shunned: dict[tuple[int, int], tuple[float, _ReadError]] = {}
        self._gone: set[tuple[int, int]] = set()
        self._owner = os.getpid()

    def read(self, source_id: int, sample_id: int) -> RawSample:
        """One sample.

        Raises:
            BadSampleError: if its shard is gone or cannot be used, or it has no usable text.
            StorageTrouble: if its shard cannot be read in all tries; caused by the last OSError.
            IndexError: if there is no such sample.
        """
        ref = self._indexes[source_id].locate(sample_id)
        txt: bytes | None = None
        try:
            if "json" not in ref.parts:
                txt, *images = self._read_parts(source_id, sample_id, ref, "txt", *ref.images)
                return RawSample(ref.key, tuple(images), sample_text(None, txt, len(images)))
            record, *images = self._read_parts(source_id, sample_id, ref, "json", *ref.images)
            try:
                text = sample_text(record, None, len(images))
            except NoCaptionInJson:
                if "txt" not in ref.parts:
                    raise
                (txt,) = self._read_parts(source_id, sample_id, ref, "txt")
                text = sample_text(record, txt, len(images))
        except _ReadError as error:
            raise BadSampleError(ref.key, ref.shard, str(error), error.errno) from None
        except CaptionError as error:
            raise BadSampleError(ref.key, ref.shard, str(error)) from None
        return RawSample(ref.key, tuple(images), text)

    def shard_path(self, source_id: int, sample_id: int) -> Path:
        """The shard that holds a sample."""
        index = self._indexes[source_id]
        return index.shard_path(index.shard_of(sample_id))

    def close(self) -> None:
        """Close all shards; reading on reopens them."""
        if self._owner == os.getpid():
            for fd, _ in self._open.values():
                os.close(fd)
        self._open.clear()

    def _read_parts(
        self, source_id: int, sample_id: int, ref: SampleRef, name: str, *images: Span
    ) -> Sequence[bytes]:
        spans = [ref.parts[name], *images]
        staged = self._from_stage(source_id, sample_id, ref, *spans)
        where = (source_id, self._indexes[source_id].shard_of(sample_id))
        return staged or self._read_spans(where, ref, *spans)

    def _from_stage(
        self, source_id: int, sample_id: int, ref: SampleRef, *spans: Span
    ) -> list[bytes] | None:
        if self._staged is None:
            return None
        members = self._staged.read(source_id, sample_id, spans)
        if members is None or _member_fault(members, ref, spans):
            return None  # the shard itself is asked, and may be blamed
        return [member[BLOCK:] for member in members]

    def _read_spans(self, where: tuple[int, int], ref: SampleRef, *spans: Span) -> list[bytes]:
        self._check_shunned(where)
        for pause in (*self._pauses_s, None):
            try:
                return self._try_read(where, ref, spans)
            except OSError as error:
                self._drop(where)
                if pause is None or not self._may_pass(where, error, pause):
                    raise self._given_up(where, ref.shard, error) from error
                self._sleep(pause)
        raise AssertionError("unreachable")

    def _may_pass(self, where: tuple[int, int], error: OSError, pause_s: float) -> bool:
        if error.errno == errno.ENOENT and self._gone:
            # Once one shard proved to be deleted, half a minute for each of its fellows would
            # cost more than the samples are worth; but none is given up for a moment's absence.
            return where not in self._gone and pause_s <= _FELLOWS_PAUSE_S
        return error.errno in PASSING or error.errno == errno.ENOENT

    def _given_up(self, where: tuple[int, int], shard: Path, error: OSError) -> Exception:
        if error.errno in PASSING:
            return storage_trouble(shard, error, _WITHOUT_IT)
        if error.errno == errno.ENOENT:
            self._gone.add(where)
        bad = _ReadError(f"the shard cannot be read: {error.strerror or error}", error.errno)
        self._shunned[where] = (self._clock() + _SHUN_S, bad)
        return bad

    def _try_read(
        self, where: tuple[int, int], ref: SampleRef, spans: Sequence[Span]
    ) -> list[bytes]:
        fd, opened = self._descriptor(where, ref.shard)
        begin = min(span.offset for span in spans) - BLOCK
        end = max(span.offset + span.length for span in spans)
        if end - begin <= sum(span.length for span in spans) + _MAX_GAP:
            data = _pread(fd, begin, end - begin)  # neighbours: one request instead of two
            starts = [span.offset - BLOCK - begin for span in spans]
            members = [
                data[start : start + BLOCK + span.length]
                for start, span in zip(starts, spans, strict=True)
            ]
        else:
            members = [_pread(fd, span.offset - BLOCK, BLOCK + span.length) for span in spans]
        # Looked at after the bytes: a writer changes the time before it changes them.
        if _state(os.fstat(fd)) != opened:
            raise OSError(errno.ESTALE, "it is written to while it is read")
        if fault := _member_fault(members, ref, spans):
            raise _ReadError(fault)
        return [member[BLOCK:] for member in members]

    def _descriptor(self, where: tuple[int, int], shard: Path) -> tuple[int, _State]:
        if self._owner != os.getpid():  # forked: the descriptors belong to the parent
            self._open.clear()
            self._owner = os.getpid()
        known = self._open.get(where)
        if known is not None:
            self._open.move_to_end(where)
            return known
        fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        self._gone.discard(where)
        state = _state(os.fstat(fd))
        expected = self._indexes[where[0]].shard_size(where[1])
        if state[0] != expected:
            os.close(fd)
            bad = _ReadError(f"the shard has {state[0]} bytes, but {expected} when it was indexed")
            self._shunned[where] = (self._clock() + _SHUN_S, bad)
            raise bad
        self._open[where] = fd, state
        while len(self._open) > self._max_open:
            os.close(self._open.popitem(last=False)[1][0])
        return fd, state

    def _drop(self, where: tuple[int, int]) -> None:
        known = self._open.pop(where, None)
        if known is not None:
            os.close(known[0])

    def _check_shunned(self, where: tuple[int, int]) -> None:
        shunned = self._shunned.get(where)
        if shunned is None:
            return
        until, bad = shunned
        if self._clock() < until:
            raise _ReadError(str(bad), bad.errno)
        del self._shunned[where]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def storage_trouble(path: Path, error: OSError, without_it: str) -> StorageTrouble:
    """What is raised for a file of the run that could not be read in all tries.

    ``without_it`` is how to go on if the disk has lost it.
    """
    return StorageTrouble(
        f"{path} cannot be read, however often it is tried: {error.strerror or error}",
        why="it was read before, or other machines read it, so another start may do; to train on "
        "something else in its place would change the result",
        fix="the job comes back by itself; if it is always this one, the disk has lost it: "
        f"{without_it}",
    )


class _ReadError(Exception):
    """Why a sample's bytes cannot be had; with the shard's errno, if that could not be read."""

    def __init__(self, reason: str, errno: int | None = None) -> None:
        super().__init__(reason)
        self.errno = errno


_WITHOUT_IT = "rename the file, and others of its source stand in for its samples"

_State = tuple[int, int]
"""Size in bytes and modification time in nanoseconds of an open shard."""


def _state(stat: os.stat_result) -> _State:
    return stat.st_size, stat.st_mtime_ns


def _member_fault(members: Sequence[bytes], ref: SampleRef, spans: Sequence[Span]) -> str:
    """Why tar members, each a header with its part, are not those that were indexed; "" if so."""
    for member, span in zip(members, spans, strict=True):
        if len(member) != BLOCK + span.length:
            return "the shard became shorter since it was indexed"
        if not belongs(member[:BLOCK], ref.key, span.length):
            return "the shard was changed since it was indexed: another member lies there"
        if span.crc is not None and crc32(memoryview(member)[BLOCK:]) != span.crc:
            return "its bytes differ from what was indexed (CRC32)"
    return ""


def _pread(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
