"""Tests of ``model/conversion/detect.py``."""

from __future__ import annotations

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle


def test_unknown_heads_ask_for_an_architecture(vicuna) -> None:
    with pytest.raises(WeightsError, match="attention heads of width 64") as caught:
        open_bundle(vicuna.path)
    assert "architecture.json" in str(caught.value)


def test_sizes_are_seen_in_shapes(reference, monkeypatch) -> None:
    from mgpt4_hpc.model.conversion import detect

    arch = reference.architecture
    monkeypatch.setitem(detect.VISION_HEADS_BY_WIDTH, arch.vision_width, arch.vision_heads)
    monkeypatch.setitem(detect.QFORMER_HEADS_BY_WIDTH, arch.qformer_width, arch.qformer_heads)
    assert open_bundle(reference.path).architecture == reference.bundle.architecture
