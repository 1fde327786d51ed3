"""Tests of ``model/bundle/published.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.bundle.published import read_published


def test_a_site_overrides_single_sources(tmp_path: Path) -> None:
    path = tmp_path / "mgpt4" / "weight-sources.yaml"
    path.parent.mkdir()
    path.write_text("sources: {eva-vit-g: {path: /shared/eva_vit_g.pth}}\n")
    found = read_published({"XDG_CONFIG_HOME": str(tmp_path)})
    assert found.parts("vicuna7b")["vit"].place == "/shared/eva_vit_g.pth"
    assert found.parts("vicuna7b")["llm"].hub == "Vision-CAIR/vicuna-7b"
    assert set(found.parts("llama2-7b")) == {"vit", "llm", "projector"}
    for text, told in (
        ("sources: {eva-vit-g: {url: https://x/y}}", "needs the name of its file"),
        ("sources: {eva-vit-g: {url: https://x/y, path: /z}}", "exactly one of"),
        ("sources: {eva-vit-g: {pfad: /z}}", "sources.eva-vit-g"),
        ("variants: {mine: {vit: nowhere}}", "sources that are not there: ['nowhere']"),
        ("quellen: {}", "quellen"),
        ("[1]", "is not a table"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_published({"XDG_CONFIG_HOME": str(tmp_path)})
        assert told in str(caught.value)
