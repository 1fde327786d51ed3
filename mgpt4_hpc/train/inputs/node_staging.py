"""Copies on the node's disk for one rank: the first rank of a node makes them, all read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.local_copier import Stager
from mgpt4_hpc.data.reading.local_copies import Staged, stage_folder
from mgpt4_hpc.data.sampling.order import SampleOrder
from mgpt4_hpc.distributed import Ranks

_GIB = 2**30


@dataclass
class NodeStaging:
    """What one rank has of it; nothing at all unless ``data.stage_to`` is set.

    Attributes:
        staged: to read from.
        stager: this node's, on its first rank.
        told: a sentence for the log: where, or why not.
    """

    staged: Staged | None = None
    stager: Stager | None = None
    told: str = ""

    def advance(self, position: int) -> None:
        """Samples before ``position`` have been read."""
        if self.stager is not None:
            self.stager.advance(position)

    @property
    def facts(self) -> dict[str, Any] | None:
        """For the ledger: what this node copied, and how often this rank read from copies."""
        if self.stager is None or self.staged is None:
            return None
        reads = {"folder": str(self.stager.folder), "samples_read": self.staged.num_reads}
        return {**reads, **asdict(self.stager.report)}

    def close(self) -> None:
        """End the copying and remove the copies, if they are ours."""
        if self.stager is not None:
            self.stager.close()


def open_staging(
    config: RunConfig,
    run: Path,
    order: SampleOrder,
    indexes: Sequence[ShardIndex],
    ranks: Ranks,
    position: int,
) -> NodeStaging:
    """Begin to copy ahead of ``position``; where that cannot be, training reads the shards.

    Forks: to be called before threads and the GPU are used.
    """
    wanted = config.data.stage_to
    if wanted is None:
        return NodeStaging()
    folder = stage_folder(wanted, indexes, str(run))
    if folder is None:
        return NodeStaging(told=f"data.stage_to {wanted} is no folder here: reading the shards")
    stager = None
    if ranks.local_rank == 0:
        budget = int(config.data.stage_gib * _GIB)
        try:
            stager = Stager(folder, order, indexes, budget, position)
        except OSError as error:
            why = error.strerror or error
            return NodeStaging(told=f"data.stage_to: {folder}: {why}: reading the shards")
        stager.start()
    text = f"copying samples ahead to {folder}, at most {config.data.stage_gib:g} GiB a node"
    return NodeStaging(Staged(folder, indexes), stager, text)
