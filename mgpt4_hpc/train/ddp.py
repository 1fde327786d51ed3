"""DDP around what is trained alone: frozen towers are neither broadcast nor bucketed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class ProjectorWithLora(nn.Module):
    """The projector, which also owns parameters that others use in the same forward pass.

    DDP averages a gradient when autograd has finished it, wherever its parameter was used; it only
    needs to know of the parameter.
    """

    def __init__(self, projector: nn.Linear, lora: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.projector = projector
        self.lora = nn.ParameterList(lora)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The projector's."""
        projected: torch.Tensor = self.projector(features)
        return projected


def wrap_projector(
    projector: nn.Linear,
    device: torch.device,
    world_size: int,
    lora: Sequence[nn.Parameter] = (),
) -> nn.Module:
    """Projector with gradients averaged over the ranks, settled for bit-identical resumes.

    DDP rearranges its gradient buckets after the first backward pass, in the order in which
    gradients arrived. A process that resumed at step 1,000 would make its first step with the
    early layout where the uninterrupted run used the late one, and would sum in another order.
    Two discarded passes before the first real step bring both to the same layout.
    """
    trained = ProjectorWithLora(projector, lora) if lora else projector
    if world_size == 1:
        return trained
    wrapped = DistributedDataParallel(
        trained,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=False,
    )
    nothing = torch.zeros(1, projector.in_features, device=device)
    for _ in range(2):
        sum((p.sum() for p in lora), wrapped(nothing).sum()).backward()
        trained.zero_grad(set_to_none=True)
    return wrapped
