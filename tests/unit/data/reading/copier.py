"""A copier with a small budget."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.local_copier import _Copier
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize


def an_order(index: ShardIndex) -> SampleOrder:
    return SampleOrder([SourceSize(index.name, index.num_samples)], seed=3)


def a_copier(folder: Path, index: ShardIndex, budget: int) -> tuple[_Copier, list[int]]:
    folder.mkdir(exist_ok=True)
    counts = [0, 0, 0, 0]
    return _Copier(folder, an_order(index), [index], budget, counts), counts
