"""What a preset leaves to the site is missed before the job waits, all of it at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError, PreflightError
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.launch.submit.preflight_files import weights_findings
from mgpt4_hpc.model.bundle.manifest import BundleManifest, LlmRecord
from mgpt4_hpc.model.conversion.variants import VARIANTS
from mgpt4_hpc.run_dir import RunDir


def faults_of(tmp_path: Path, preset: str, **overrides: str) -> list[str]:
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    config = load_config(preset, overrides=given).config
    with pytest.raises(PreflightError) as caught:
        preflight(config, tmp_path, executor="local")
    return caught.value.faults


def test_a_bare_preset_names_everything_that_is_to_be_filled_in(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "stage1-vicuna7b")
    assert [fault.split(" ")[0:4] for fault in faults] == [
        ["model.weights", "is", "not", "set:"],
        ["the", "data", "source", "laion"],
        ["the", "data", "source", "cc_sbu"],
    ]


def test_one_path_given_leaves_one_missing(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "stage1-vicuna7b", data__paths__laion=str(tmp_path / "no"))
    assert not any("source laion has no path" in fault for fault in faults)
    assert any("source cc_sbu has no path" in fault for fault in faults)
    assert any(fault.startswith("data source laion:") for fault in faults), "it is not there"


def test_weights_of_another_model_are_refused_before_the_job_waits(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    architecture = VARIANTS["vicuna13b"].architecture
    BundleManifest(architecture, {}, {}, LlmRecord("llm", True, {})).write(bundle / "bundle.json")
    faults = faults_of(tmp_path, "stage1-vicuna7b", model__weights=str(bundle))
    assert any("are of vicuna13b, these settings are for vicuna7b" in fault for fault in faults)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"vocab_size": 128256, "intermediate_size": 14336}, "vocab_size 128256 instead of 32000"),
        ({"intermediate_size": 14336}, "intermediate_size 14336 instead of 11008"),
        ({"vocab_size": 32001}, ""),
        ({"rms_norm_eps": 1e-5}, ""),
    ],
    ids=["llama-3", "mistral", "vicuna v0", "another epsilon"],
)
def test_another_language_model_of_the_same_width_is_refused(
    tmp_path: Path, sizes: dict[str, float], told: str
) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "llm").mkdir(parents=True)
    known = VARIANTS["vicuna7b"]
    (bundle / "llm" / "config.json").write_text(json.dumps({**known.llm_config, **sizes}))
    BundleManifest(known.architecture, {}, {}, LlmRecord("llm", True, {})).write(
        bundle / "bundle.json"
    )
    for variant, expected in (("vicuna7b", told), ("any", "")):
        config = load_config(
            "stage1-vicuna7b",
            overrides={"model.weights": str(bundle), "model.variant": variant},
        ).config
        about = [fault for fault in weights_findings(config)[0] if "is another one" in fault]
        assert bool(about) == bool(expected) and expected in "".join(about)


def test_the_trainer_itself_refuses_too(tmp_path: Path) -> None:
    from mgpt4_hpc.train.run import run_training
    from mgpt4_hpc.train.stopping.stop import NeverStop

    run = RunDir(tmp_path / "run")
    run.create({"name": "run", "stage": 1})
    write_config(run.config_file, load_config("stage1-vicuna7b"))
    with pytest.raises(ConfigError) as caught:
        run_training(run, Ranks(), NeverStop(), claim={})
    assert len(caught.value.faults) == 3
