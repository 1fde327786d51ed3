"""Tests of ``model/llm_files/tensors.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.model.llm_files.tensors import compare_by_loading, compare_with_llama, llama_shapes
from mgpt4_hpc.model.weight_files.headers import TensorInfo

NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


def settings(llm: Path, **changes: Any) -> None:
    path = llm / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "mlp_bias": True, "head_dim": 64}, {"num_key_value_heads": 1}],
)
def test_the_table_is_what_transformers_builds(changes: dict[str, Any], weights: Path) -> None:
    settings(weights / "llm", **changes)
    config = json.loads((weights / "llm" / "config.json").read_text())
    stored = {
        key: TensorInfo("F16", shape, 0) for key, shape in llama_shapes(config, weights).items()
    }
    gaps = compare_by_loading(weights / "llm", stored)
    assert not gaps.missing and not gaps.mismatched and not gaps.unused
    stored.pop(NORM)
    stored[QUERY] = TensorInfo("F16", (3, 3), 0)
    by_loading = compare_by_loading(weights / "llm", stored)
    assert by_loading == compare_with_llama(weights, config, stored)
    assert by_loading.missing == [NORM] and list(by_loading.mismatched) == [QUERY]
