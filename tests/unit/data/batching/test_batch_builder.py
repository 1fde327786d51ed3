"""Tests of ``data/batching/batch_builder.py``."""

from __future__ import annotations

import pytest

from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.index.index import ShardIndex
from tests.unit.data.batching.loaders import an_order
from tests.unit.data.worlds import make_index, text_spec

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("loader"), 300)


def test_prompts_depend_on_seed_and_position(index: ShardIndex) -> None:
    asked = ("a", "bb", "ccc", "dddd")

    def lengths(**changes: object) -> list[int]:
        spec = text_spec(instructions=asked, prompt_per=changes.pop("prompt_per", "sample"))
        loader = StepLoader(
            an_order(index), [index], spec, 16, LoaderOptions(global_batch_size=20, **changes)
        )  # type: ignore[arg-type]
        with loader:
            step = next(loader)
        return [
            int((row & ~learned).sum())
            for batch in step
            for row, learned in zip(batch.attention_mask_BT, batch.labels_BT != -100, strict=True)
        ]

    drawn = lengths(micro_batch_size=20, seed=1)
    assert len(set(drawn)) > 1
    assert lengths(micro_batch_size=3, seed=1, num_workers=1) == drawn
    assert lengths(micro_batch_size=20, seed=2) != drawn
    assert len(set(lengths(micro_batch_size=20, seed=1, prompt_per="batch"))) == 1
