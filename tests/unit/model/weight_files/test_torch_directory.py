"""Tests of ``model/weight_files/torch_directory.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.weight_files.torch_directory import read_directory


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_directory_is_what_torch_reads(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {
        "a": whole,
        "view": whole[1:3],
        "turned": whole.T,
        "half": torch.nn.Parameter(torch.randn(5, 2).half()),
        "brain": torch.randn(3).bfloat16(),
        "one": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "step": 3,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_directory(path)
    assert found["step"] == 3
    for key, tensor in content.items():
        if key == "step":
            continue
        info = found[key]
        assert info.shape == tuple(tensor.shape) and info.num_bytes == tensor.nbytes
        if key == "turned":
            assert info.start is None
        else:
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert info.read() == raw, key
    cut(path, 3)
    with pytest.raises(WeightsError, match="truncated"):
        read_directory(path)
