"""An order and a loader over a small index."""

from __future__ import annotations

from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from tests.unit.data.worlds import text_spec


def an_order(index: ShardIndex, val_fraction: float = 0.0) -> SampleOrder:
    return SampleOrder([SourceSize("toy", index.num_samples)], 7, val_fraction=val_fraction)


def a_loader(index: ShardIndex, **changes: object) -> StepLoader:
    settings = {"global_batch_size": 24, "micro_batch_size": 5, **changes}
    options = LoaderOptions(**settings)  # type: ignore[arg-type]
    return StepLoader(an_order(index), [index], text_spec(), 16, options)
