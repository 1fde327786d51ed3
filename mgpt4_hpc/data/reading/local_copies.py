"""Reading from copies on the node's own disk, which a ``Stager`` makes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from mgpt4_hpc.data.index.index import ShardIndex, Span
from mgpt4_hpc.data.sampling.order import MAX_BLOCK_SAMPLES
from mgpt4_hpc.data.tar.header import BLOCK

_KEPT = 4096
_SLOTS = 1024


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring samples of one shard.

    Attributes:
        name: of its copy.
        source_id, shard: where it comes from.
        begin, end: in bytes of the shard, from the first part's tar header on.
    """

    name: str
    source_id: int
    shard: int
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size of the copy."""
        return self.end - self.begin


class Stretches:
    """Which stretch a sample belongs to: a function of the indexes alone."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self._indexes = list(indexes)
        self._known: dict[tuple[int, int, int], Stretch] = {}

    def of(self, source_id: int, sample_id: int) -> Stretch:
        """The stretch that holds a sample."""
        index = self._indexes[source_id]
        block, shard = sample_id // MAX_BLOCK_SAMPLES, index.shard_of(sample_id)
        where = (source_id, block, shard)
        stretch = self._known.get(where)
        if stretch is None:
            low, high = index.samples_of(shard)
            low = max(low, block * MAX_BLOCK_SAMPLES)
            high = min(high, (block + 1) * MAX_BLOCK_SAMPLES)
            begin, end = index.extent(low, high)
            stretch = Stretch(f"{source_id}-{low}-{high}", source_id, shard, begin - BLOCK, end)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[where] = stretch
        return stretch


def stage_folder(stage_to: str, indexes: Sequence[ShardIndex], run: str) -> Path | None:
    """The folder that all processes of a run on this node share; None if there is no such place.

    Args:
        stage_to: a folder on the node's own disk, perhaps with environment variables.
        indexes: of the run; other data has another folder.
        run: its path.
    """
    place = os.path.expandvars(stage_to)
    if "$" in place or not Path(place).is_dir():
        return None
    identity = "\0".join([run, *(index.digest for index in indexes)])
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    return Path(place) / f"mgpt4-stage-{os.getuid()}-{digest}"


class Staged:
    """The copies, for reading; forked workers share it.

    Nothing is kept open: an open file would keep its space after the stager removed it.
    """

    def __init__(self, folder: Path, indexes: Sequence[ShardIndex]) -> None:
        self._folder = folder
        self._stretches = Stretches(indexes)
        # A slot for each worker, so that they need no lock, which one that is killed would hold.
        self._reads = get_context("fork").RawArray("q", _SLOTS)

    @property
    def num_reads(self) -> int:
        """Samples that this process and its workers read from copies."""
        return sum(self._reads)

    def read(self, source_id: int, sample_id: int, spans: Sequence[Span]) -> list[bytes] | None:
        """Each span's tar header and bytes; None if their stretch is not here as it should be."""
        stretch = self._stretches.of(source_id, sample_id)
        try:
            fd = os.open(self._folder / stretch.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_size != stretch.num_bytes:
                return None
            members = [
                os.pread(fd, BLOCK + span.length, span.offset - BLOCK - stretch.begin)
                for span in spans
            ]
        except OSError:
            return None
        finally:
            os.close(fd)
        self._reads[os.getpid() % _SLOTS] += 1
        return members
