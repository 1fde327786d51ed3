"""Tests of ``model/llm_files/folder.py``."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.llm_files.folder import companion_files, llm_files


def test_weights_that_are_there_twice_count_once(bundle: Path) -> None:
    llm = bundle / "llm"
    before = check_llm(llm).num_parameters
    tensors = load_file(llm / "model.safetensors")
    save_file(
        {f"of_another_kind.{k}": t for k, t in tensors.items()}, llm / "consolidated.safetensors"
    )
    assert check_llm(llm).num_parameters == before
    (llm / "model.safetensors").rename(llm / "shard-1.safetensors")
    index = llm / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard-1.safetensors")})
    )
    assert check_llm(llm).num_parameters == before
    names = {path.name for path in [*llm_files(llm), *companion_files(llm)]}
    assert {"shard-1.safetensors", index.name} <= names and "consolidated.safetensors" not in names
    for text in ("{", "[]", '{"weight_map": 1}'):
        index.write_text(text)
        assert "cannot read" in "".join(check_llm(llm).faults)
    index.unlink()
    (llm / "shard-1.safetensors").unlink()
    assert check_llm(llm).num_parameters == before  # as it is all that there is
