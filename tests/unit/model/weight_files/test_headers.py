"""Tests of ``model/weight_files/headers.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.weight_files.headers import read_header


def test_truncated_safetensors_is_seen_in_its_header(bundle: Path) -> None:
    path = bundle / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="is truncated"):
        read_header(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(path)


def test_a_header_may_not_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    path.write_bytes(path.read_bytes().replace(b'"shape":[4]', b'"shape":[5]'))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(path)
