"""From a conversation to token ids, the places of its images, and what of it is learned.

Training and chat lay out a conversation by the same code, so a model is asked as it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from mgpt4_hpc.prompts import Dialogue, Template, Turn

Encode = Callable[[str], list[int]]

LITERAL = "\ufdd0"
"""Stands before each character that must not become part of a control token.

A noncharacter of Unicode: no text has it, and ``TextTokenizer`` takes it out.
"""


class Literally:
    """Protects texts that spell control tokens, such as ``</s>`` in a caption.

    Args:
        spellings: of control tokens, and of what divides a conversation; none leave texts as they
            are.
    """

    def __init__(self, spellings: Collection[str] = ()) -> None:
        self.spellings = tuple(sorted(spellings, key=lambda spelling: (-len(spelling), spelling)))
        self._pattern = re.compile("|".join(map(re.escape, self.spellings)) or "(?!)")

    def text(self, text: str) -> str:
        """The text with ``LITERAL`` before each character of a spelling in it."""
        return self._pattern.sub(lambda match: "".join(LITERAL + char for char in match[0]), text)

    def dialogue(self, dialogue: Dialogue) -> Dialogue:
        """The same of every text of a conversation."""
        turns = tuple(
            Turn(
                tuple(None if piece is None else self.text(piece) for piece in turn.question),
                None if turn.answer is None else self.text(turn.answer),
            )
            for turn in dialogue.turns
        )
        return Dialogue(turns, self.text(dialogue.system))

    def __reduce__(self) -> tuple[type[Literally], tuple[tuple[str, ...]]]:
        return (Literally, (self.spellings,))


@dataclass(frozen=True, slots=True)
class Run:
    """Text between images: its token ids, and for each whether it is learned."""

    ids: Sequence[int]
    learned: Sequence[bool]


Layout = list[Run | None]
"""A whole sequence; None stands for an image."""


@dataclass(frozen=True, slots=True)
class AnswerLimit:
    """Longest answer.

    Attributes:
        max_tokens: with its end symbol.
        keep_end_symbol: a long answer loses its last words, so that the model still learns to
            stop; False cuts off the end symbol first, as the original does.
    """

    max_tokens: int
    keep_end_symbol: bool = True

    def cut(self, ids: Sequence[int], num_end: int) -> Sequence[int]:
        """An answer's ids cut to the limit; the last ``num_end`` ids are the end symbol's."""
        if len(ids) <= self.max_tokens or not self.keep_end_symbol:
            return ids[: self.max_tokens]
        end = ids[len(ids) - num_end :][-self.max_tokens :]
        return [*ids[: self.max_tokens - len(end)], *end]


class ChatFormat(Protocol):
    """How one language model reads a conversation.

    Attributes:
        name: of the format.
        end_symbol: text that ends an answer beside the tokenizer's end token.
        literally: protects what users and captions write.
    """

    name: str
    end_symbol: str
    literally: Literally

    def lay_out(self, dialogue: Dialogue, limit: AnswerLimit | None = None) -> Layout:
        """The conversation from its first token on.

        Learned are the answers and their end symbols. A last turn without an answer ends where
        the answer begins.
        """


class TemplateFormat:
    """A ``Template``: each of its texts is tokenized alone, as the original does.

    Texts end at an image, at the beginning of an answer, and behind its end symbol.
    """

    def __init__(
        self,
        template: Template,
        encode: Encode,
        bos_id: int,
        literally: Literally | None = None,
    ) -> None:
        self.name = template.name
        self.end_symbol = template.end_symbol
        self.literally = literally or Literally()
        self._template = template
        self._encode = encode
        self._bos_id = bos_id
        self._encode_text = lru_cache(maxsize=1024)(lambda text: tuple(encode(text)))

    def lay_out(self, dialogue: Dialogue, limit: AnswerLimit | None = None) -> Layout:
        """See ``ChatFormat``."""
        dialogue = self.literally.dialogue(dialogue)
        layout: Layout = [Run((self._bos_id,), (False,))] if self._template.has_bos else []
        for number, turn in enumerate(dialogue.turns):
            system = "" if number else dialogue.system
            texts = self._template.opening(turn.question, system=system, later=number > 0)
            for place, text in enumerate(texts):
                if place:
                    layout.append(None)
                ids = self._encode_text(text) if text else ()
                layout.append(Run(ids, (False,) * len(ids)))
            if turn.answer is not None:
                answer = answer_ids(self._encode, turn.answer, self.end_symbol, limit)
                layout.append(Run(answer, (True,) * len(answer)))
        return layout

    def __reduce__(self) -> tuple[type[TemplateFormat], tuple[Template, Encode, int, Literally]]:
        return (TemplateFormat, (self._template, self._encode, self._bos_id, self.literally))


def answer_ids(
    encode: Encode, answer: str, end_symbol: str, limit: AnswerLimit | None = None
) -> Sequence[int]:
    """Token ids of an answer with its end symbol, within the limit."""
    ids = encode(answer + end_symbol)
    if limit is None or len(ids) <= limit.max_tokens:
        return ids
    # The end symbol's tokens are those behind what the answer alone gives: tokenized by itself it
    # would gain SentencePiece's leading space.
    alone = encode(answer)
    common = 0
    while common < min(len(alone), len(ids) - 1) and alone[common] == ids[common]:
        common += 1
    return limit.cut(ids, len(ids) - common)
