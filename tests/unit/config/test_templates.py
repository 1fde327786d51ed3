"""Conversation formats of other language models."""

from __future__ import annotations

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import ConfigError

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
