"""Tests of ``launch/submit/preflight_memory.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.launch.submit.preflight_memory import estimate, memory_findings, sizes_gib


def config(**changes: Any) -> RunConfig:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("toy-stage1", overrides=overrides).config


@pytest.mark.parametrize(
    ("gpu_type", "hints", "sizes"),
    [
        ("a100", [], (40, 80)),
        ("a100", ["a100_80g"], (80,)),
        ("a100", ["gpu&a100-40gb"], (40,)),
        ("nvidia_a100-sxm4-80gb", [], (80,)),
        ("a100_3g.20gb", [], (20,)),
        ("a10", [], (24,)),
        ("h100", [], (80, 94)),
        ("V100", [], (16, 32)),
        ("quadro_rtx_6000", [], (24,)),
        ("nvidia_rtx_6000_ada_generation", [], (48,)),
        ("rtx6000ada", [], (48,)),
        ("rtx_a4000", [], ()),
        ("rtx_a6000", [], (48,)),
        ("mi300", [], ()),
        ("gpu", [], ()),
    ],
)
def test_a_types_name_tells_its_memory(
    gpu_type: str, hints: list[str], sizes: tuple[int, ...]
) -> None:
    assert sizes_gib(gpu_type, hints) == sizes


def test_what_cannot_fit_is_a_fault_and_what_may_not_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = config(train__device="cuda", model__weights=str(bundle))
    found = estimate(on_gpu)
    assert found is not None and 1.5 < found.total < 8, "the toy is small"
    more = estimate(config(train__device="cuda", model__weights=str(bundle), model__llm_8bit=True))
    assert more is not None and more.weights < found.weights
    assert estimate(config(model__weights=str(bundle))) is None, "a CPU has no GPU memory"
    assert estimate(config(train__device="cuda")) is None, "the original's files tell nothing"
    assert memory_findings(on_gpu, ["a100"], []) == ([], [])

    large = type(found)(weights=60.0, trained=0.1, activations=5.0)
    monkeypatch.setattr("mgpt4_hpc.launch.submit.preflight_memory.estimate", lambda _: large)
    faults, notes = memory_findings(on_gpu, ["a100"], [])
    assert faults == [] and "a100 has 40 to 80: it may not fit" in notes[0]
    faults, notes = memory_findings(on_gpu, ["a100"], ["40g"])
    assert "needs about 67 GiB of GPU memory, a100 has 40: lower" in faults[0] and notes == []
    assert memory_findings(on_gpu, ["mi300"], []) == ([], []), "nobody knows"
    assert memory_findings(on_gpu, ["a100", "mi300"], ["40g"]) == ([], [])
