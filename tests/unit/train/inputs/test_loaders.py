"""The held-out loss when storage keeps a batch from coming."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mgpt4_hpc.data.batching.workers import StillWaiting
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.train.inputs.loaders import Batches


class Starved:
    """Held-out batches that do not come; closing them would end their workers."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise StillWaiting

    def close(self) -> None:
        pytest.fail("closed")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_validation_that_waits_for_storage_is_broken_off_by_a_stop(sharded: bool) -> None:
    model = cast(Any, SimpleNamespace(sharded=sharded))
    batches = Batches(cast(Any, None), cast(Any, Starved()))
    evaluate = batches.evaluation(model, torch.device("cpu"), Ranks(), lambda: True)
    assert evaluate is not None and evaluate() is None
