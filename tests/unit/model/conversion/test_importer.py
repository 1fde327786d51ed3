"""Tests of ``model/conversion/importer.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.weight_files.untrusted_files import read_pth


def test_unexplained_missing_and_wrong_keys_are_all_listed(folder: Path) -> None:
    path = folder / "eva_vit_g.pth"
    tensors = read_pth(path)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors["surprise"] = torch.zeros(1)
    del tensors["blocks.1.mlp.fc1.bias"]
    tensors["cls_token"] = torch.zeros(1, 1, 7)
    torch.save(tensors, path)
    with pytest.raises(WeightsError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    for words in ("surprise", "blocks.1.mlp.fc1.bias", "cls_token is (1, 1, 7)"):
        assert words in message
