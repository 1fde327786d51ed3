"""Tests of ``model/conversion/parts.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle


def test_the_llama2_variant_has_an_identity_norm(tmp_path: Path, reference) -> None:
    state = reference.bundle.qformer_state()
    identity = torch.equal(state["ln_vision.weight"], torch.ones(len(state["ln_vision.weight"])))
    assert identity == (not reference.architecture.qformer)
    reasons = [report.missing for report in reference.bundle.reports if report.missing]
    assert bool(reasons) == identity


def test_projector_of_another_model(folder: Path, vicuna) -> None:
    wrong = {
        "model": {"llama_proj.weight": torch.zeros(5120, 768), "llama_proj.bias": torch.zeros(5120)}
    }
    torch.save(wrong, folder / "pretrained_minigpt4.pth")
    with pytest.raises(WeightsError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert "the projector is for the 13B model (width 5120)" in message
    assert "the LLM is a model of width 64" in message
    assert "with Q-Former (Vicuna) (width 768)" in message and "width 48" in message
