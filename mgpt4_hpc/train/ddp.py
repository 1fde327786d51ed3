"""DDP around the projector alone: frozen towers are neither broadcast nor bucketed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wrap_projector(projector: nn.Linear, device: torch.device, world_size: int) -> nn.Module:
    """Projector whose gradients are averaged over the ranks, settled for bit-identical resumes.

    DDP lays its gradient buckets out anew after the first backward pass, in the order in which
    gradients arrived. A process that resumed at step 1,000 would make its first step with the
    early layout where the uninterrupted run used the late one, and would sum in another order.
    Two discarded passes before the first real step bring both to the same layout.
    """
    if world_size == 1:
        return projector
    wrapped = DistributedDataParallel(
        projector,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=False,
    )
    nothing = torch.zeros(1, projector.in_features, device=device)
    for _ in range(2):
        wrapped(nothing).sum().backward()
        projector.zero_grad(set_to_none=True)
    return wrapped
