"""Copies of what will be read soon, on the node's own disk.

A window of the order reads 256 neighbouring samples from each of up to 64 shards per source. What
is copied ahead are these stretches and not whole shards: a shard holds about forty of them, of
which a window needs one. A stretch is one large sequential read of the shared file system in the
place of 256 small ones in random order.

One process a node copies (``Stager``); all ranks and workers of the node look for a stretch under a
name that follows from the sample's number (``Staged``) and read the shard itself where it is not,
not yet, or not whole. So nothing depends on the copies: neither bytes nor order nor success.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.forked_process import init_worker
from mgpt4_hpc.data.reading.local_copies import Stretch, Stretches
from mgpt4_hpc.data.sampling.order import WINDOW_SAMPLES, SampleOrder

AHEAD = 4 * WINDOW_SAMPLES
"""Positions to copy ahead, at most; the budget usually ends it sooner."""
_CHUNK = 512
_COPY = 4 * 1024 * 1024
_PAUSE_S = 0.1
_MAX_FAILURES = 20
"""Copies that fail in a row, after which the stager stops copying."""


@dataclass(frozen=True)
class StagingReport:
    """What a stager did.

    Attributes:
        copied, bytes_copied: stretches, and their sizes.
        removed: stretches that were behind.
        failed: copies that did not succeed; these samples were read from the shards.
    """

    copied: int
    bytes_copied: int
    removed: int
    failed: int


class Stager:
    """A process that copies ahead of the run's position and removes what is behind it.

    Args:
        folder: from ``stage_folder``; emptied first, as a killed attempt may have used it.
        order: which sample stands at which position.
        indexes: of the order's sources.
        budget: bytes that the copies may have.
        position: where the run begins.

    Raises:
        OSError: if the folder cannot be made, or belongs to another user.
    """

    def __init__(
        self,
        folder: Path,
        order: SampleOrder,
        indexes: Sequence[ShardIndex],
        budget: int,
        position: int,
    ) -> None:
        self.folder = folder
        _recreate(folder)
        context = get_context("fork")
        self._position = context.RawValue("q", position)
        self._counts = context.RawArray("q", 4)
        copier = _Copier(folder, order, indexes, budget, self._counts)
        self._process = context.Process(
            target=_serve, args=(init_worker(), copier, self._position), daemon=True
        )

    def start(self) -> None:
        """Fork the process."""
        self._process.start()
        # Before multiprocessing's own handler, which would send TERM and wait.
        atexit.register(self.close)

    def advance(self, position: int) -> None:
        """Samples before ``position`` have been read."""
        self._position.value = position

    @property
    def report(self) -> StagingReport:
        """So far."""
        return StagingReport(*self._counts)

    def close(self) -> None:
        """End the process and remove the copies. Safe to call twice."""
        atexit.unregister(self.close)
        if self._process.pid is not None:
            self._process.kill()  # it may hang in a read of a dead file server
            self._process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def _serve(init: Callable[[int], None], copier: _Copier, position: Any) -> None:
    init(0)
    while True:
        if not copier.step(position.value):
            time.sleep(_PAUSE_S)


class _Copier:
    """What the stager's process does; the arguments are those of ``Stager``."""

    def __init__(
        self,
        folder: Path,
        order: SampleOrder,
        indexes: Sequence[ShardIndex],
        budget: int,
        counts: Any,
    ) -> None:
        self._folder = folder
        self._order = order
        self._indexes = list(indexes)
        self._budget = budget
        self._counts = counts
        self._stretches = Stretches(indexes)
        self._last_use: dict[Stretch, int] = {}
        self._failed: set[Stretch] = set()
        self._used = 0
        self._frontier = 0
        self._failures_in_a_row = 0

    def step(self, now: int) -> bool:
        """Remove what lies before position ``now``, copy what comes; False if nothing is to do."""
        self._remove_before(now)
        self._frontier = max(self._frontier, now)
        if self._frontier >= now + AHEAD or self._failures_in_a_row >= _MAX_FAILURES:
            return False
        positions = range(self._frontier, self._frontier + _CHUNK)
        source_ids, sample_ids = self._order.lookup(positions)
        for position, source_id, sample_id in zip(
            positions, source_ids.tolist(), sample_ids.tolist(), strict=True
        ):
            stretch = self._stretches.of(source_id, sample_id)
            if stretch not in self._last_use and stretch not in self._failed:
                if stretch.num_bytes > self._budget:
                    self._failed.add(stretch)
                elif self._used + stretch.num_bytes > self._budget:
                    self._frontier = position
                    return False
                else:
                    self._copy(stretch)
            if stretch in self._last_use:
                self._last_use[stretch] = position
        self._frontier += _CHUNK
        return True

    def _remove_before(self, now: int) -> None:
        for stretch in [copied for copied, last in self._last_use.items() if last < now]:
            (self._folder / stretch.name).unlink(missing_ok=True)
            del self._last_use[stretch]
            self._used -= stretch.num_bytes
            self._counts[2] += 1

    def _copy(self, stretch: Stretch) -> None:
        index = self._indexes[stretch.source_id]
        temporary = self._folder / f".{stretch.name}"
        try:
            _copy_range(index, stretch, temporary)
            temporary.replace(self._folder / stretch.name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._counts[3] += 1
            self._failures_in_a_row += 1
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._budget = self._used  # what fits
            self._failed.add(stretch)
            print(f"staging: {index.shard_path(stretch.shard)}: {error.strerror}", flush=True)
            return
        self._failures_in_a_row = 0
        self._last_use[stretch] = 0
        self._used += stretch.num_bytes
        self._counts[0] += 1
        self._counts[1] += stretch.num_bytes


def _copy_range(index: ShardIndex, stretch: Stretch, target: Path) -> None:
    """Copy a stretch, unless its shard is another one; each read of it looks at its headers."""
    shard = index.shard_path(stretch.shard)
    with shard.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy:
        before = os.fstat(source.fileno())
        if before.st_size != index.shard_size(stretch.shard):
            raise OSError(errno.ESTALE, "it was replaced since it was indexed")
        source.seek(stretch.begin)
        remaining = stretch.num_bytes
        while remaining:
            data = source.read(min(remaining, _COPY))
            if not data:
                raise OSError(errno.EIO, "it is shorter than when it was indexed")
            while data:
                written = copy.write(data)
                remaining -= written
                data = data[written:]
        if os.fstat(source.fileno()).st_mtime_ns != before.st_mtime_ns:
            raise OSError(errno.ESTALE, "it is written to while it is copied")


def _recreate(folder: Path) -> None:
    """An empty folder of our own, whatever a killed attempt left."""
    with contextlib.suppress(FileNotFoundError):
        state = folder.lstat()
        if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
            raise PermissionError(errno.EPERM, "is not ours", str(folder))
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
