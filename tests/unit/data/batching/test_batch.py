"""Tests of ``data/batching/batch.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.data.index.index import ShardIndex
from tests.unit.data.batching.loaders import a_loader
from tests.unit.data.worlds import make_index

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("loader"), 300)


def test_batches_hold_what_they_promise(index: ShardIndex) -> None:
    with a_loader(index) as loader:
        step = next(loader)
    assert [len(batch) for batch in step] == [5, 5, 5, 5, 4]
    batch = step[0]
    assert batch.images_NCHW.shape == (5, 3, 16, 16)
    assert batch.images_NCHW.dtype == torch.uint8
    learned = batch.labels_BT != -100
    assert torch.equal(batch.labels_BT[learned], batch.input_ids_BT[learned])
    assert int(learned.sum()) == batch.num_answer_tokens
    assert batch.image_mask_BT.sum(dim=1).tolist() == [4] * 5
    assert not (learned & ~batch.attention_mask_BT).any()
    assert not (learned & batch.image_mask_BT).any()
    assert batch.attention_mask_BT[:, -1].any(), "padding is trimmed to the longest"
    assert batch.positions == (0, 1, 2, 3, 4)
