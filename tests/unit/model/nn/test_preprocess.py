"""Tests of ``model/nn/preprocess.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.model.nn.preprocess import CLIP_MEAN, CLIP_STD, normalise


def test_normalise_is_clip_s() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    wanted = (images / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(
        3, 1, 1
    )
    torch.testing.assert_close(normalise(images), wanted)
    with pytest.raises(TypeError, match="uint8"):
        normalise(wanted)
