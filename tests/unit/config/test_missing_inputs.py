"""What a configuration leaves open."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.missing_inputs import missing_start, unset_paths


def test_weights_and_each_source_without_a_path_are_named() -> None:
    faults = unset_paths(load_config("stage1-vicuna7b").config)
    assert len(faults) == 3
    assert "--set model.weights=DIR" in faults[0] and "--set data.paths.laion=DIR" in faults[1]


def test_a_second_stage_needs_a_projector_in_its_bundle_or_by_name(tmp_path: Path) -> None:
    second = load_config("stage2-vicuna7b", overrides={"model.weights": str(tmp_path)}).config
    assert "--after RUN" in missing_start(second)[0]
    (tmp_path / "projector.safetensors").touch()
    assert missing_start(second) == []
