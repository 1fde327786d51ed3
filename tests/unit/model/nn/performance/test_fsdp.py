"""The language model spread over ranks, as far as one process can see it.

That the results are the whole model's is in tests/integration/test_resume.py, on two ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mgpt4_hpc.model.nn.language import trunk
from mgpt4_hpc.model.nn.performance.fsdp import shard_layers
from tests.support.reference import load_reference


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """Rank 0 of two; a stand-in for the other, which says nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_layers_share_a_root_so_that_gathering_overlaps_computing(
    two_ranks: None,
) -> None:
    model = load_reference("vicuna_tiny").model
    whole = trunk(model.language_model)
    layers = shard_layers(model, torch.device("cpu"), 2)
    spread = [module for module in whole.modules() if isinstance(module, FSDPModule)]
    assert len(spread) == layers + 1
    with torch.no_grad():
        whole(inputs_embeds=torch.zeros(1, 4, whole.config.hidden_size))
    assert [module._get_fsdp_state()._is_root for module in spread] == [True] + [False] * layers
    kept = {n for n, p in whole.named_parameters() if not isinstance(p, DTensor)}
    assert kept == {"embed_tokens.weight", "norm.weight"}
