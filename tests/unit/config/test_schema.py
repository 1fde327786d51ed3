"""Conversation formats, names, and text for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.config.load import load_config
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
