"""Tests of ``model/weight_files/fingerprint.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle


def sources_of(reference, **changes) -> Sources:
    qformer = reference.path / "blip2_pretrained_flant5xxl.pth"
    given = {
        "vit": reference.path / "eva_vit_g.pth",
        "qformer": qformer if qformer.exists() else None,
        "llm": reference.path / "llm",
        "projector": reference.path / "pretrained_minigpt4.pth",
        "architecture": reference.architecture,
    }
    return Sources(**(given | changes))


def test_changed_bundle_file(vicuna, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", sources_of(vicuna))
    path = tmp_path / "b" / "connector.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"connector\.safetensors has changed since"):
        open_bundle(tmp_path / "b")
    path.write_bytes(content[:-8])
    with pytest.raises(WeightsError, match="at import it had"):
        open_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        open_bundle(tmp_path / "b")
