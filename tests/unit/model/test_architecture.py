"""Tests of ``model/architecture.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import open_bundle


def test_architecture_file_is_used(folder: Path, vicuna) -> None:
    assert open_bundle(folder).architecture == vicuna.bundle.architecture


def test_bad_architectures_are_explained(vicuna, tmp_path: Path) -> None:
    sizes = vicuna.architecture.to_dict()
    for change, words in (
        ({"depth": 3}, "unknown keys ['depth']"),
        ({"vision_heads": 5}, "does not divide by 5 heads"),
        ({"image_size": 57}, "no multiple of patch_size"),
        ({"vision_width": "64"}, "is not of type int"),
        ({"num_query_tokens": 0}, "num_query_tokens = 0"),
    ):
        with pytest.raises(WeightsError) as caught:
            Architecture.from_dict(sizes | change)
        assert words in str(caught.value)
    del sizes["patch_size"]
    with pytest.raises(WeightsError, match=r"missing keys \['patch_size'\]"):
        Architecture.from_dict(sizes)
