"""Tests of ``train/device.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import BadNode
from mgpt4_hpc.train.device import choose_device
from tests.unit.train.attempts import on_cuda


@pytest.mark.parametrize(("named", "chosen"), [("2", 0), ("0,1,2,3", None)])
def test_a_rank_that_was_given_one_gpu_takes_it_whatever_its_number(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, named: str, chosen: int | None
) -> None:
    """But not the one that is left of a node's four."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    for name, result in (("is_available", True), ("device_count", 1), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *device, result=result: result)
    third = Ranks(rank=2, local_rank=2, world_size=4, local_world_size=4)
    if chosen is None:
        with pytest.raises(BadNode, match="finds no GPU 2"):
            choose_device(on_cuda(config), third)
    else:
        assert choose_device(on_cuda(config), third) == torch.device("cuda", chosen)
