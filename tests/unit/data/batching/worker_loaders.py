"""A loader with two workers, and their process ids."""

from __future__ import annotations

from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from tests.unit.data.worlds import text_spec


def a_loader(index: ShardIndex, **changes: object) -> StepLoader:
    order = SampleOrder([SourceSize("toy", index.num_samples)], 0)
    settings = {"global_batch_size": 8, "micro_batch_size": 4, "num_workers": 2, **changes}
    options = LoaderOptions(**settings)  # type: ignore[arg-type]
    return StepLoader(order, [index], text_spec(), 8, options)


def workers_of(loader: StepLoader) -> list[int]:
    return [worker.pid for worker in loader._stream._batches._workers]  # type: ignore[union-attr]
