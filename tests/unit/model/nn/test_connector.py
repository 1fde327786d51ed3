"""Tests of ``model/nn/connector.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.conversion.parts import QFORMER_FILE
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
from tests.unit.train.conftest import open_trainable

FAITHFUL = {"faithful": True}


def config_of(stage: int = 2, **settings: Any) -> RunConfig:
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(f"stage{stage}-vicuna7b", overrides=overrides).config


@pytest.mark.parametrize(("ln_vision", "identity"), [("identity", True), ("bundle", False)])
def test_the_norm_of_a_model_without_qformer(tmp_path, ln_vision: str, identity: bool) -> None:
    """A bundle may bring a trained one; the original never loads it."""
    trainable = open_trainable("llama2_tiny")
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in trainable.bundle.path.iterdir():
        if not path.name.startswith("expected"):
            (folder / path.name).symlink_to(path)
    width = trainable.bundle.architecture.vision_width
    trained = {
        "ln_vision.weight": torch.full((width,), 2.0),
        "ln_vision.bias": torch.full((width,), 0.5),
        "query_tokens": torch.zeros(1, 32, 8),
        "Qformer.bert.encoder.layer.0.attention.self.query.weight": torch.zeros(8, 8),
        "t5_proj.weight": torch.zeros(8, 8),
    }
    torch.save({"model": trained}, folder / QFORMER_FILE)
    bundle = open_bundle(folder, architecture=trainable.bundle.architecture)
    assert any(
        "joins neighbouring patches" in w for r in bundle.reports for w in r.dropped.values()
    )
    norm = build_model(bundle, ModelOptions(ln_vision=ln_vision)).connector.get_submodule(
        "ln_vision"
    )
    assert norm.weight.unique().tolist() == [1.0 if identity else 2.0]
    assert norm.bias.unique().tolist() == [0.0 if identity else 0.5]
    assert not norm.weight.requires_grad
    assert config_of(**FAITHFUL).model.ln_vision == "identity"


def test_a_model_with_qformer_keeps_its_norm(vicuna) -> None:
    model = build_model(vicuna.bundle, ModelOptions(ln_vision="identity"))
    theirs = vicuna.bundle.qformer_state()["ln_vision.weight"]
    assert torch.equal(model.connector.get_submodule("ln_vision").weight, theirs)
