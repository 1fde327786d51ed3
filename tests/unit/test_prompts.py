"""The formats in which the original speaks to its language models."""

from __future__ import annotations

import pytest

from mgpt4_hpc import prompts
from mgpt4_hpc.errors import ConfigError


def test_the_originals_prompts_to_the_letter() -> None:
    assert prompts.get_template("vicuna_v0").render("Describe this image in detail.") == (
        "###Human: <Img><ImageHere></Img> Describe this image in detail. ###Assistant: "
    )
    assert prompts.get_template("llama2").render("What is it?") == (
        "[INST] <Img><ImageHere></Img> What is it? [/INST] "
    )
    assert len(prompts.STAGE2_INSTRUCTIONS) == len(set(prompts.STAGE2_INSTRUCTIONS)) == 4


def test_an_unknown_template_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="llama2, model, vicuna_v0"):
        prompts.get_template("vicuna")


def test_a_prompt_is_split_at_its_image() -> None:
    before, after = prompts.split_at_image(prompts.get_template("vicuna_v0").render("Go."))
    assert (before, after) == ("###Human: <Img>", "</Img> Go. ###Assistant: ")


@pytest.mark.parametrize("text", ["no image", "<ImageHere> and <ImageHere>"])
def test_one_image_and_no_other_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"[02] image slots, not one"):
        prompts.split_at_image(text)
