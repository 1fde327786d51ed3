"""The reference folder as a bundle, for the commands around weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.model.weights_cases import call
from tests.support.reference import vicuna  # noqa: F401


@pytest.fixture
def imported(vicuna, tmp_path: Path) -> Path:  # noqa: F811
    architecture = tmp_path / "architecture.json"
    architecture.write_text(json.dumps(vicuna.architecture.to_dict()))
    path, out = vicuna.path, tmp_path / "bundle"
    result = call(
        "import",
        *("--vit", path / "eva_vit_g.pth"),
        *("--qformer", path / "blip2_pretrained_flant5xxl.pth"),
        *("--llm", path / "llm"),
        *("--projector", path / "pretrained_minigpt4.pth"),
        *("--architecture", architecture),
        *("--out", out),
    )
    assert result.exit_code == 0 and "17 dropped" in result.stdout, result.output
    return out
