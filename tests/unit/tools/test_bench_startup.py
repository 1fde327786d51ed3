"""The start-up benchmark's bundle is one that a run can be started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.shapes import SHAPES
from bench_startup import make_bundle

from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model


def test_the_random_bundle_opens_whole(tmp_path: Path) -> None:
    tiny = SHAPES["tiny"]
    shape = replace(tiny, llm={**tiny.llm, "vocab_size": 700})  # the toy's tokenizer has 640
    make_bundle(tmp_path / "bundle", shape, "cpu")
    bundle = open_bundle(tmp_path / "bundle")
    model = build_model(bundle, ModelOptions(precision="bf16"))
    assert model.llama_proj.out_features == shape.llm["hidden_size"]
    encode = load_tokenizer(bundle.llm_dir).encode
    assert max(encode("a red square")) < shape.llm["vocab_size"]
    assert set(tmp_path.iterdir()) == {tmp_path / "bundle", tmp_path / "bundle-llm"}
