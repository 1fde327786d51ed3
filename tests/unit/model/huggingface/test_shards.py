"""Shards are written tensor by tensor, and read back by safetensors and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mgpt4_hpc.model.huggingface.shards import of_tensor, write_shards


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    tensors = {
        f"t{n}": torch.arange(n + 1.0).repeat(7, 1).to(kinds[n % 3]).T for n in range(9)
    }  # not contiguous
    told: list[int] = []
    write_shards(
        tmp_path,
        {name: of_tensor(tensor) for name, tensor in tensors.items()},
        shard_bytes=300,
        on_progress=lambda done, total: told.append(total - done),
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files == sorted(p.name for p in tmp_path.glob("*.safetensors"))
    found = {}
    for file in files:
        held = load_file(tmp_path / file)
        assert all(index["weight_map"][name] == file for name in held)
        found |= held
    assert found.keys() == tensors.keys() and told[-1] == 0
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
