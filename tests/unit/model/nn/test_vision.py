"""Tests of ``model/nn/vision.py``."""

from __future__ import annotations

import torch

from mgpt4_hpc.model.nn.vision import fit_position_embedding


def test_position_embedding_for_a_larger_image() -> None:
    old = torch.randn(1, 17, 6)
    assert fit_position_embedding(old, 4) is old
    new = fit_position_embedding(old.half(), 6)
    assert new.shape == (1, 37, 6) and new.dtype == torch.float16
    torch.testing.assert_close(new[0, 0].float(), old[0, 0], atol=2e-3, rtol=0.0)
    grid = old.half().float()[0, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new[0, 1:].float(), wanted[0].flatten(1).T, atol=2e-3, rtol=0.0)
