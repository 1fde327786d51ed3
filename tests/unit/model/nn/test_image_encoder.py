"""A vision tower from outside of the package."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.nn import image_encoder
from mgpt4_hpc.model.nn.minigpt4 import build_model


class Tower(nn.Module):
    """Another tower than the ViT: one convolution, and a class token of zeros."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, arch.vision_width, arch.patch_size, stride=arch.patch_size)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        patches_NPV = self.patches(pixels_NCHW).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(patches_NPV[:, :1]), patches_NPV], dim=1)


def test_a_tower_from_outside(vicuna, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING.md's recipe: what ``load_vision`` returns is frozen, and the rest trains."""
    monkeypatch.setattr(image_encoder, "load_vision", lambda arch, state, attention: Tower(arch))
    model = build_model(vicuna.bundle)
    loss = model.answer_loss(**vicuna.batch("stage2"))
    loss.backward()
    assert loss.isfinite() and model.llama_proj.weight.grad.any()
    assert not torch.equal(loss, vicuna.model.answer_loss(**vicuna.batch("stage2")))
    assert all(not weight.requires_grad for weight in model.vision.parameters())
