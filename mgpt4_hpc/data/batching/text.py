"""From a caption or a conversation to token ids, labels and image slots.

A conversation is laid out by its ``ChatFormat``; a caption with an instruction is a conversation of
one turn about one image. Without an instruction (stage 1) a sequence is BOS, the image's slots, the
answer with its end symbol. Only answers and their end symbols are learned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.chat_format import (
    AnswerLimit,
    ChatFormat,
    Encode,
    Layout,
    Run,
    answer_ids,
)
from mgpt4_hpc.prompts import Dialogue, Turn

NO_LABEL = -100
"""Label of a position without a loss (PyTorch's ``ignore_index``)."""

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int | None = 50) -> str:
    """Stage 1's cleaning: lower case, some punctuation to spaces, at most ``max_words`` words.

    Each of ``. ! " ( ) * # : ; ~`` becomes a space; runs of white space become one space.
    """
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:max_words])


@dataclass(frozen=True)
class TextSpec:
    """How captions and conversations become sequences.

    Attributes:
        encode: a text's token ids, without special tokens.
        bos_id: begins a sequence without an instruction.
        pad_id: fills image slots and the right end; never learned, never seen by the model.
        num_image_tokens: slots of one image.
        max_answer_tokens: limit of each answer with its end symbol.
        end_symbol: ends an answer without an instruction.
        chat_format: lays out conversations.
        keep_end_symbol: see ``AnswerLimit``.
        max_tokens: limit of a conversation, images included; a longer one loses its last turns.
        system: system prompt of whatever has none of its own.
        instructions: captions answer one of these; empty for none (stage 1).
        prompt_per: one drawn instruction per "sample" or per "batch" (optimizer step).
        learn_pad: learn the padding token where an answer contains it; the original leaves every
            padding id without a label, also one that stands for text.
        clean: apply ``clean_caption``.
        max_words: its limit.
    """

    encode: Encode
    bos_id: int
    pad_id: int
    num_image_tokens: int
    max_answer_tokens: int
    end_symbol: str
    chat_format: ChatFormat
    keep_end_symbol: bool = True
    max_tokens: int = 2048
    system: str = ""
    instructions: tuple[str, ...] = ()
    prompt_per: Literal["sample", "batch"] = "sample"
    learn_pad: bool = True
    clean: bool = False
    max_words: int | None = 50

    @property
    def limit(self) -> AnswerLimit:
        """Limit of each answer."""
        return AnswerLimit(self.max_answer_tokens, self.keep_end_symbol)

    def lay_out(self, dialogue: Dialogue) -> Layout:
        """A conversation's tokens and images."""
        if not dialogue.system and self.system:
            dialogue = Dialogue(dialogue.turns, self.system)
        return self.chat_format.lay_out(dialogue, self.limit)


class TooLongError(Exception):
    """The first turn of a conversation exceeds the limit; the message says by how much."""


@dataclass(frozen=True)
class TokenSequence:
    """One sample's tokens; T positions.

    Attributes:
        input_ids: int64[T], ``pad_id`` in image slots.
        image_mask: bool[T], True in image slots.
        labels: int64[T], the token itself where it is learned, NO_LABEL elsewhere.
        num_images: number of the sample's first images that have slots.
        num_cut: turns that were left out at the end.
    """

    input_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    labels: NDArray[np.int64]
    num_images: int
    num_cut: int = 0


def build_sequence(
    spec: TextSpec, text: str | Dialogue, instruction: str | None = None
) -> TokenSequence:
    """Lay out one sample.

    Args:
        spec: the format and its limits.
        text: a caption, or a conversation.
        instruction: that a caption answers, or None.

    Raises:
        TooLongError: if not even a conversation's first turn is within ``max_tokens``.
    """
    if isinstance(text, Dialogue):
        return _fitted(spec, text)
    caption = clean_caption(text, spec.max_words) if spec.clean else text
    if instruction is not None:
        layout = spec.lay_out(Dialogue((Turn((None, instruction), caption),)))
    else:
        answer = spec.chat_format.literally.text(caption)
        answer_tokens = answer_ids(spec.encode, answer, spec.end_symbol, spec.limit)
        answer_run = Run(answer_tokens, (True,) * len(answer_tokens))
        layout = [Run((spec.bos_id,), (False,)), None, answer_run]
    return _sequence(spec, layout)[0]


def _fitted(spec: TextSpec, dialogue: Dialogue) -> TokenSequence:
    """As many of the turns as ``max_tokens`` allows."""
    count = len(dialogue.turns)
    while True:
        sequence, learned = _sequence(spec, spec.lay_out(dialogue.first(count)))
        if len(learned) <= spec.max_tokens:
            return replace(sequence, num_cut=len(dialogue.turns) - count)
        # Each answer is one stretch of learned tokens, and a turn ends with it. A model's own chat
        # template may write a shorter conversation in another way, so what fits is laid out again.
        ends = np.flatnonzero(np.diff(learned.astype(np.int8), append=0) < 0) + 1
        count = min(count - 1, int((ends <= spec.max_tokens).sum()))
        if count < 1:
            raise TooLongError(
                f"its first question and answer take {ends[0] if len(ends) else len(learned)} "
                f"tokens, text.max_tokens is {spec.max_tokens}"
            )


def _sequence(spec: TextSpec, layout: Layout) -> tuple[TokenSequence, NDArray[np.bool_]]:
    """A layout as arrays, and which positions are learned."""
    ids: list[int] = []
    learned: list[bool] = []
    places: list[int] = []
    slots = [spec.pad_id] * spec.num_image_tokens
    for run in layout:
        if run is None:
            places.append(len(ids))
            ids += slots
            learned += [False] * len(slots)
        else:
            ids += run.ids
            learned += run.learned
    input_ids = np.asarray(ids, dtype=np.int64)
    image_mask = np.zeros(len(ids), dtype=np.bool_)
    for place in places:
        image_mask[place : place + spec.num_image_tokens] = True
    is_learned = np.asarray(learned, dtype=np.bool_)
    labels = np.where(is_learned, input_ids, NO_LABEL)
    if not spec.learn_pad:
        labels[labels == spec.pad_id] = NO_LABEL
    return TokenSequence(input_ids, image_mask, labels, len(places)), is_learned
