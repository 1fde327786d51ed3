"""Conversations, their templates and stop symbols, shared by training, evaluation and chat.

The texts are MiniGPT-4's own (its ``alignment.txt`` and ``prompt_template`` settings): a model
answers only in the format that it was fine-tuned in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.errors import ConfigError

IMAGE_SLOT = "<ImageHere>"
"""Marks where the image tokens go; it never reaches the tokenizer."""

IMAGE_TAG = f"<Img>{IMAGE_SLOT}</Img>"
BEFORE_IMAGE, AFTER_IMAGE = IMAGE_TAG.split(IMAGE_SLOT)

PROMPT_SLOT = "{}"
"""Marks where image and instruction go in a conversation format."""

STAGE2_INSTRUCTIONS: tuple[str, ...] = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)

_BRACKETED = re.compile(r"[\[<]+\|?/?\w+\|?[\]>]+")
"""What divides a conversation in most formats: ``[INST]``, ``<</SYS>>``, ``<|im_end|>``."""

Piece = str | None
"""Part of a question: a text, or None for the next image."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: texts and images in their order; one space stands between neighbours.
        answer: without its end symbol; None while it is asked for.
    """

    question: tuple[Piece, ...]
    answer: str | None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation: at least one turn; the n-th None in its questions is the n-th image."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def num_images(self) -> int:
        """Images in all questions."""
        return sum(turn.question.count(None) for turn in self.turns)

    def first(self, count: int) -> Dialogue:
        """Its first ``count`` turns."""
        return Dialogue(self.turns[:count], self.system)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates take it, and shards hold it: role and content."""
        spoken: list[tuple[str, Sequence[Piece]]] = []
        if self.system:
            spoken.append(("system", [self.system]))
        for turn in self.turns:
            spoken.append(("user", turn.question))
            if turn.answer is not None:
                spoken.append(("assistant", [turn.answer]))
        return [{"role": role, "content": list(map(_piece, pieces))} for role, pieces in spoken]

    def transcript(self) -> str:
        """The conversation as one text, for people."""
        lines = [f"System: {self.system}"] if self.system else []
        for turn in self.turns:
            asked = " ".join("<image>" if piece is None else piece for piece in turn.question)
            lines += [f"Q: {asked}", f"A: {turn.answer or ''}"]
        return "\n".join(lines)


def _piece(piece: Piece) -> dict[str, str]:
    return {"type": "image"} if piece is None else {"type": "text", "text": piece}


@dataclass(frozen=True)
class Template:
    """How one language model is spoken to.

    Attributes:
        name: the value of the setting ``text.template``.
        prompt: the conversation up to the answer, with one ``{}`` for images and question.
        end_symbol: what ends an answer in stage 2, and stops generation.
        system: a system prompt, in place of its ``{}``.
        system_inside: it stands before the first question, and not before the conversation.
        between: stands between an answer's end symbol and the next question.
        has_bos: whether the conversation begins with the tokenizer's begin token.
    """

    name: str
    prompt: str
    end_symbol: str
    system: str = PROMPT_SLOT
    system_inside: bool = False
    between: str = ""
    has_bos: bool = True

    @property
    def separators(self) -> frozenset[str]:
        """Texts that divide a conversation; no user's text is read as one of them."""
        own = {BEFORE_IMAGE, AFTER_IMAGE, self.end_symbol.strip()} - {""}
        return separators_in(self.prompt + self.system) | own

    def render(self, instruction: str) -> str:
        """Full prompt for one image and one instruction."""
        return IMAGE_SLOT.join(self.opening((None, instruction)))

    def opening(
        self, question: Sequence[Piece], *, system: str = "", later: bool = False
    ) -> list[str]:
        """The texts around the images of a question, from its beginning to where the answer begins.

        ``later`` is for a turn behind an answer: its end symbol may be how a turn begins, as in
        ``###Human:``.
        """
        texts = [""]
        for place, piece in enumerate(question):
            texts[-1] += " " if place else ""
            if piece is None:
                texts[-1] += BEFORE_IMAGE
                texts.append(AFTER_IMAGE)
            else:
                texts[-1] += piece
        # Not str.format: other models' formats may hold braces of their own.
        before, _, after = self.prompt.partition(PROMPT_SLOT)
        system_text = self.system.replace(PROMPT_SLOT, system, 1) if system else ""
        texts[0] = (
            before + system_text + texts[0]
            if self.system_inside
            else system_text + before + texts[0]
        )
        texts[-1] += after
        if later:
            texts[0] = self.between + texts[0].removeprefix(self.end_symbol)
        return texts


def separators_in(text: str) -> frozenset[str]:
    """What divides a conversation in the text of one."""
    return frozenset(_BRACKETED.findall(text))


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("vicuna_v0", "###Human: {} ###Assistant: ", "###"),
        Template(
            "llama2",
            "[INST] {} [/INST] ",
            "</s>",
            system="<<SYS>>\n{}\n<</SYS>>\n\n",
            system_inside=True,
        ),
        # As the models' own chat templates write them, without a system prompt of their own.
        Template(
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        ),
        Template(
            "qwen",
            "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
            system="<|im_start|>system\n{}<|im_end|>\n",
            between="\n",
            has_bos=False,
        ),
        Template("mistral", "[INST] {} [/INST]", "</s>", system="{}\n\n", system_inside=True),
        Template(
            "gemma",
            "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
            system="{}\n\n",
            system_inside=True,
            between="\n",
        ),
    )
}

MODEL_TEMPLATE = Template("model", PROMPT_SLOT, "")
"""Stands for the chat template of the language model's own tokenizer."""

CUSTOM = "custom"
"""Name of a format that a run's own settings write out."""

STAGE1_END_SYMBOL = "\n"


def get_template(name: str) -> Template:
    """Template of that name. Raises ConfigError with the known names otherwise."""
    known = {**TEMPLATES, MODEL_TEMPLATE.name: MODEL_TEMPLATE}
    try:
        return known[name]
    except KeyError:
        raise ConfigError(
            f"unknown prompt template {name!r}", fix=f"use one of: {', '.join(sorted(known))}"
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
