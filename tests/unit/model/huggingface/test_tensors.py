"""The row for a token that the language model does not have."""

from __future__ import annotations

from pathlib import Path

import torch

from mgpt4_hpc.model.huggingface.shards import of_tensor, read_entry, stored, write_shards
from mgpt4_hpc.model.huggingface.tensors import with_mean_row, without_last_row
from mgpt4_hpc.model.weight_files.headers import read_header


def test_a_row_is_the_mean_and_can_be_taken_off(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mgpt4_hpc.model.huggingface.shards.BLOCK_BYTES", 50)  # not whole rows
    matrix = torch.randn(37, 12, dtype=torch.bfloat16)
    write_shards(tmp_path, {"embed": of_tensor(matrix)})
    entry = stored(read_header(tmp_path / "model.safetensors")["embed"], "embed")
    longer = with_mean_row(entry)
    found = read_entry(longer)
    assert torch.equal(found[:-1], matrix)
    assert torch.equal(found[-1], matrix.double().mean(0).bfloat16())
    assert torch.equal(read_entry(without_last_row(longer)), matrix)
