"""Conversation templates and stop symbols, shared by training, evaluation and chat.

The texts are MiniGPT-4's own (its ``alignment.txt`` and ``prompt_template`` settings): a model
answers only in the format that it was fine-tuned in.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgpt4_hpc.errors import ConfigError

IMAGE_SLOT = "<ImageHere>"
"""Marks where the image tokens go; it never reaches the tokenizer."""

IMAGE_TAG = f"<Img>{IMAGE_SLOT}</Img>"

PROMPT_SLOT = "{}"
"""Marks where image and instruction go in a conversation format."""

STAGE2_INSTRUCTIONS: tuple[str, ...] = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)


@dataclass(frozen=True)
class Template:
    """How one language model is spoken to.

    Attributes:
        name: the value of the setting ``text.template``.
        prompt: the conversation up to the answer, with one ``{}`` for image and instruction.
        end_symbol: what ends an answer in stage 2, and stops generation.
    """

    name: str
    prompt: str
    end_symbol: str

    def render(self, instruction: str) -> str:
        """Full prompt for one image and one instruction."""
        # Not str.format: other models' formats may hold braces of their own.
        return self.prompt.replace(PROMPT_SLOT, f"{IMAGE_TAG} {instruction}", 1)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("vicuna_v0", "###Human: {} ###Assistant: ", "###"),
        Template("llama2", "[INST] {} [/INST] ", "</s>"),
    )
}

STAGE1_END_SYMBOL = "\n"


def get_template(name: str) -> Template:
    """Template of that name. Raises ConfigError with the known names otherwise."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise ConfigError(
            f"unknown prompt template {name!r}", fix=f"use one of: {', '.join(sorted(TEMPLATES))}"
        ) from None


def template_faults(prompt: str) -> list[str]:
    """What is wrong with a conversation format that a user wrote; each goes on from its name."""
    faults = []
    if prompt.count(PROMPT_SLOT) != 1:
        faults.append(
            f"has {prompt.count(PROMPT_SLOT)} places {PROMPT_SLOT} for image and instruction, "
            "write it once"
        )
    if IMAGE_SLOT in prompt:
        faults.append(f"contains {IMAGE_SLOT}, which {PROMPT_SLOT} brings along: leave it out")
    return faults


def split_at_image(prompt: str) -> tuple[str, str]:
    """Text before and after the one image slot of ``prompt``.

    Raises:
        ConfigError: if there is not exactly one slot.
    """
    before, slot, after = prompt.partition(IMAGE_SLOT)
    if not slot or IMAGE_SLOT in after:
        raise ConfigError(
            f"the prompt {prompt!r} has {prompt.count(IMAGE_SLOT)} image slots, not one",
            fix=f"write {IMAGE_TAG} once, where the image belongs",
        )
    return before, after
