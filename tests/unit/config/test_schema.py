"""Conversation formats, names, text for scripts, and settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.config.load import (
    config_digest,
    load_config,
)
from mgpt4_hpc.errors import ConfigError
from tests.unit.config.minimal import MINIMAL, faults_of

QWEN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_a_format_of_ones_own() -> None:
    overrides = {"text.prompt": QWEN, "text.end_symbol": "<|im_end|>"}
    config = load_config("stage2-vicuna7b", overrides=overrides).config
    assert config.end_symbol == "<|im_end|>" and len(config.prompts) == 4
    assert config.prompts[0] == QWEN.replace(
        "{}", "<Img><ImageHere></Img> Describe this image in detail."
    )


def test_braces_of_the_format_itself_stay() -> None:
    overrides = {"text.prompt": '{"user": "{}"}{x}', "text.end_symbol": "}"}
    config = load_config("stage2-vicuna7b", overrides=overrides).config
    assert config.prompts[0].startswith('{"user": "<Img><ImageHere></Img> Describe')


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"text.prompt": QWEN}, "text.end_symbol must say"),
        ({"text.prompt": "no slot", "text.end_symbol": "#"}, "has 0 places {}"),
        ({"text.prompt": "{} {}", "text.end_symbol": "#"}, "has 2 places {}"),
        ({"text.prompt": "<ImageHere>{}", "text.end_symbol": "#"}, "leave it out"),
        ({"text.end_symbol": ""}, "an answer would never end"),
        ({"text.template": "falcon"}, "give your own as text.prompt"),
    ],
)
def test_faults(overrides: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("{", r"\{")):
        load_config("stage2-vicuna7b", overrides=overrides)


def test_stage_1_has_no_prompt_but_may_have_another_end() -> None:
    config = load_config("stage1-vicuna7b", overrides={"text.prompt": QWEN}).config
    assert config.prompts == () and config.end_symbol == "\n"
    config = load_config("stage1-vicuna7b", overrides={"text.end_symbol": "</s>"}).config
    assert config.end_symbol == "</s>"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_contradictions_are_told_one_by_one(file: Path) -> None:
    overrides = {"train.min_lr": 1, "train.warmup_steps": 11, "train.eval_every_steps": 5}
    assert len(faults_of(file, overrides=overrides)) == 3


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "exclude"])
@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f"])
def test_no_line_break_reaches_a_batch_script(file: Path, key: str, character: str) -> None:
    hostile = f"a{character}#SBATCH --uid=0"
    (fault,) = faults_of(file, overrides={f"launch.{key}": hostile})
    assert f"launch.{key}" in fault


@pytest.mark.parametrize(
    "launch",
    [
        {"setup": ["module load cuda", "true\nrm -rf /"]},
        {"sbatch": {"comment": "a\nb"}},
        {"sbatch": {"comment\n": "a"}},
    ],
)
def test_nor_through_lists_and_mappings(file: Path, launch: dict) -> None:
    file.write_text(yaml.safe_dump({**MINIMAL, "launch": launch}))
    assert faults_of(file)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", ".x", "a/b", "x" * 101, "a\n"])
def test_a_name_is_fit_for_a_folder_and_a_job(file: Path, name: str) -> None:
    assert faults_of(file, overrides={"name": name})[0].startswith("name: ")


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
