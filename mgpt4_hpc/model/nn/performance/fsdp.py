"""The frozen language model spread over the run's GPUs, for one that does not fit beside its batch.

Each layer's weights are split over all ranks with FSDP2 and gathered while the layer computes, once
in the forward and once in the backward pass; frozen, they are never reduced. What is gathered is
what was split, bit by bit, so the results are those of the whole model. Embeddings, output matrix,
vision tower and projector stay whole.

Every gathering needs all ranks: a rank with fewer micro-batches than another, or with one that has
nothing to learn, has to keep up with passes of its own (``MiniGPT4.idle_loss``).
"""

from __future__ import annotations

import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.nn.language import trunk
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4


def shard_layers(model: MiniGPT4, device: torch.device, world_size: int) -> int:
    """Split every layer of the language model over the ranks; returns how many.

    The process group must stand. One rank alone keeps everything.

    Raises:
        WeightsError: if the model has no layers that transformers marks as repeatable.
    """
    if world_size == 1:
        return 0
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    llm = model.language_model
    layers = [m for m in llm.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise WeightsError(
            f"{type(llm).__name__} has no layers that could be spread over GPUs",
            fix="set model.shard_llm to false",
        )
    mesh = init_device_mesh(device.type, (world_size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # A root above them, though it splits nothing itself: without one each layer is its own, with
    # streams of its own, so that no gathering overlaps another layer's computing.
    whole = trunk(llm)
    split = {id(p) for layer in layers for p in layer.parameters()}
    fully_shard(
        whole, mesh=mesh, ignored_params={p for p in whole.parameters() if id(p) not in split}
    )
    model.sharded = True
    return len(layers)
