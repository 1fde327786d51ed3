"""Settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.config.load import config_digest, load_config
from mgpt4_hpc.errors import ConfigError
from tests.unit.config.minimal import MINIMAL, faults_of

QWEN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"text.prompt": QWEN}, "text.end_symbol must say"),
        ({"text.prompt": "no slot", "text.end_symbol": "#"}, "has 0 places {}"),
        ({"text.prompt": "{} {}", "text.end_symbol": "#"}, "has 2 places {}"),
        ({"text.prompt": "<ImageHere>{}", "text.end_symbol": "#"}, "leave it out"),
        ({"text.end_symbol": ""}, "an answer would never end"),
        ({"text.template": "falcon"}, "or your own as text.prompt"),
    ],
)
def test_faults(overrides: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("{", r"\{")):
        load_config("stage2-vicuna7b", overrides=overrides)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_contradictions_are_told_one_by_one(file: Path) -> None:
    overrides = {"train.min_lr": 1, "train.warmup_steps": 11, "train.eval_every_steps": 5}
    assert len(faults_of(file, overrides=overrides)) == 3


@pytest.mark.parametrize(
    "option",
    [
        "array",
        "output",
        "no_requeue",
        "ntasks-per-node",
        "--time",
        "cpus-per-task",
        "gpus_per_node",
        "job-name",
        "clusters",
    ],
)
def test_what_the_launcher_must_decide_is_no_sbatch_option(file: Path, option: str) -> None:
    (fault,) = faults_of(file, overrides={f"launch.sbatch.{option}": "1"})
    assert f"launch.sbatch.{option} cannot be set: " in fault


def test_gpus_may_be_asked_for_in_a_way_of_ones_own() -> None:
    overrides = {"launch.gpu_request": "none", "launch.sbatch.gpus-per-node": "a100:2"}
    launch = load_config("toy-stage1", overrides=overrides).config.launch
    assert launch.sbatch == {"gpus-per-node": "a100:2"}


def test_what_stops_a_run_is_no_part_of_its_digest_and_needs_a_held_out_loss(file: Path) -> None:
    plain = load_config(file, overrides={"data.val_fraction": 0.1})
    changes = {"train.early_stop": 3, "checkpoint.keep_best": "val/loss", "data.val_fraction": 0.1}
    faults = faults_of(file, overrides=changes)
    assert [fault.split(" needs")[0] for fault in faults] == [
        "train.early_stop",
        "checkpoint.keep_best",
    ]
    with_both = load_config(file, overrides={**changes, "train.eval_every_steps": 5})
    assert config_digest(with_both.config) == config_digest(plain.config)
