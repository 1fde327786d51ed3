"""The formats in which the original speaks to its language models."""

from __future__ import annotations

import pytest

from mgpt4_hpc import prompts
from mgpt4_hpc.chat_format import TemplateFormat
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
    with pytest.raises(ConfigError, match="gemma, llama2, llama3, mistral, model, qwen, vicuna_v0"):
        prompts.get_template("vicuna")


def spoken(name: str) -> str:
    """Two turns with a system prompt in a format, as one text; the begin token as <s>."""
    format = TemplateFormat(prompts.get_template(name), lambda text: list(map(ord, text)), -1)
    turns = (prompts.Turn((None, "What?"), "A dog."), prompts.Turn(("Sure?",), "Yes."))
    runs = format.lay_out(prompts.Dialogue(turns, "Be brief."))
    return "".join(
        "@" if run is None else "".join("<s>" if id < 0 else chr(id) for id in run.ids)
        for run in runs
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<Img>@</Img> What?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA dog.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>",
        ),
        (
            "qwen",
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n<Img>@</Img> What?<|im_end|>\n"
            "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
            "<|im_start|>assistant\nYes.<|im_end|>",
        ),
        (
            "mistral",
            "<s>[INST] Be brief.\n\n<Img>@</Img> What? [/INST]A dog.</s>"
            "[INST] Sure? [/INST]Yes.</s>",
        ),
        (
            "gemma",
            "<s><start_of_turn>user\nBe brief.\n\n<Img>@</Img> What?<end_of_turn>\n"
            "<start_of_turn>model\nA dog.<end_of_turn>\n<start_of_turn>user\nSure?<end_of_turn>\n"
            "<start_of_turn>model\nYes.<end_of_turn>",
        ),
    ],
)  # fmt: skip
def test_formats_of_other_families_are_those_of_their_own_templates(name: str, text: str) -> None:
    assert spoken(name) == text
