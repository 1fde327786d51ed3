"""Tests of ``train/ddp.py``."""

from __future__ import annotations

import torch
from torch import nn

from mgpt4_hpc.train.ddp import wrap_projector

CPU = torch.device("cpu")


def test_a_single_rank_needs_no_wrapping() -> None:
    projector = nn.Linear(2, 2)
    assert wrap_projector(projector, CPU, 1) is projector
