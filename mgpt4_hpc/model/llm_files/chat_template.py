"""Conversations in the chat template that a language model's own tokenizer has.

The whole text between two images is tokenized at once, as ``apply_chat_template`` does; nothing is
added to it, so a template without a begin token has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mgpt4_hpc.chat_format import (
    AnswerLimit,
    ChatFormat,
    Layout,
    Literally,
    Run,
    TemplateFormat,
)
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.prompts import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    MODEL_TEMPLATE,
    TEMPLATES,
    Dialogue,
    Template,
    Turn,
    separators_in,
)

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What marks a model's words in a template; transformers finds them by it, too."""
_PROBE = Dialogue((Turn(("Hi",), "Yes"),))


def chat_format(
    template: Template, tokenizer: TextTokenizer, *, parse_control_tokens: bool = False
) -> ChatFormat:
    """How a language model reads conversations in a template.

    Args:
        template: the format.
        tokenizer: the model's.
        parse_control_tokens: read what spells a control token in a caption or a message as that
            token, as the original does, and not as text.

    Raises:
        ConfigError: if it is to be the model's own, and that cannot be used.
    """
    spellings = template.separators | tokenizer.control_tokens
    literally = Literally(() if parse_control_tokens else spellings)
    if template.name == MODEL_TEMPLATE.name:
        return ModelFormat(tokenizer, literally)
    return TemplateFormat(template, tokenizer.encode, tokenizer.bos_id, literally)


@dataclass(frozen=True)
class _Answer:
    """Where an answer stands in a text: its words, and the end of its end symbol."""

    begin: int
    words_end: int
    end: int


class ModelFormat:
    """A tokenizer's chat template.

    Raises:
        ConfigError: if it has none, or an answer has no end in it.
    """

    def __init__(self, tokenizer: TextTokenizer, literally: Literally | None = None) -> None:
        self.name = MODEL_TEMPLATE.name
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template
        if not self._template:
            raise ConfigError(
                "the language model's tokenizer has no chat template",
                fix=f"set text.template to {', '.join(TEMPLATES)}, or set text.prompt and "
                "text.end_symbol",
            )
        self._marks_answers = bool(_GENERATION.search(self._template))
        self.takes_system = self._takes_a_system_prompt()
        text, (answer,) = self._render(_PROBE, _PROBE)
        self.end_symbol = text[answer.words_end : answer.end].strip()
        if not self.end_symbol:
            raise ConfigError(
                "the language model's chat template does not end an answer",
                why="a model that is trained in it would never stop",
                fix="write the format as text.prompt and text.end_symbol",
            )
        protected = literally.spellings if literally else ()
        dividing = {self.end_symbol} | separators_in(text)
        self.literally = Literally(dividing.union(protected) if protected else ())

    def lay_out(self, dialogue: Dialogue, limit: AnswerLimit | None = None) -> Layout:
        """See ``ChatFormat``."""
        dialogue = self.literally.dialogue(dialogue)
        mark = _mark_beside(dialogue)
        text, answers = self._render(_with_marks(dialogue, mark), dialogue)
        layout: Layout = []
        begin = 0
        for number, part in enumerate(text.split(mark)):
            if number:
                layout.append(None)
            here = [
                _Answer(a.begin - begin, a.words_end - begin, a.end - begin)
                for a in answers
                if begin <= a.begin < begin + len(part)
            ]
            layout.append(self._run(part, here, limit))
            begin += len(part) + len(mark)
        return layout

    def _run(self, text: str, answers: Sequence[_Answer], limit: AnswerLimit | None) -> Run:
        ids, offsets = self._tokenizer.encode_with_offsets(text)
        learned = [False] * len(ids)
        # From the last to the first: what is cut out of one moves those behind it.
        for answer in reversed(answers):
            within = [
                n
                for n, (low, high) in enumerate(offsets)
                if high > answer.begin and low < answer.end
            ]
            if not within:
                continue
            first, end = within[0], within[-1] + 1
            learned[first:end] = [True] * (end - first)
            if limit is not None:
                num_end = sum(offsets[n][1] > answer.words_end for n in within)
                kept = limit.cut(ids[first:end], num_end)
                ids[first:end], learned[first:end] = kept, [True] * len(kept)
        return Run(ids, learned)

    def _render(self, dialogue: Dialogue, original: Dialogue) -> tuple[str, list[_Answer]]:
        """The text of a conversation, and where its answers stand in it."""
        text, spans = self._tokenizer.render_chat(
            self._messages(dialogue), opened=dialogue.turns[-1].answer is None
        )
        given = [turn.answer for turn in dialogue.turns if turn.answer is not None]
        if self._marks_answers:
            places = []
            for (begin, end), words in zip(spans, given, strict=False):
                place = text.find(words, begin, end)
                places.append(_Answer(begin, place + len(words) if place >= 0 else end, end))
            return text, places
        return text, self._search(text, dialogue, given)

    def _search(self, text: str, dialogue: Dialogue, given: Sequence[str]) -> list[_Answer]:
        """Answers in a template that does not mark them: what stays when their words are others."""
        stand_in = _unused(text)
        other = Dialogue(
            tuple(
                Turn(turn.question, None if turn.answer is None else stand_in)
                for turn in dialogue.turns
            ),
            dialogue.system,
        )
        around, _ = self._tokenizer.render_chat(
            self._messages(other), opened=dialogue.turns[-1].answer is None
        )
        texts = around.split(stand_in)
        if len(texts) != len(given) + 1 or text != "".join(
            part for pair in zip(texts, [*given, ""], strict=True) for part in pair
        ):
            raise ConfigError(
                "the language model's chat template changes answers, so they cannot be learned",
                fix="write the format as text.prompt and text.end_symbol",
            )
        places, place = [], 0
        for before, words, after in zip(texts, given, texts[1:], strict=False):
            begin = place + len(before)
            words_end = begin + len(words)
            places.append(_Answer(begin, words_end, words_end + self._end_length(after)))
            place = words_end
        return places

    def _end_length(self, after: str) -> int:
        """How much of the text behind an answer is its end symbol."""
        end = getattr(self, "end_symbol", None)
        if end is None:  # the probe: what follows is the end symbol and perhaps white space
            eos = self._tokenizer.eos_token
            return after.index(eos) + len(eos) if eos and eos in after else len(after.rstrip())
        place = after.find(end)
        return place + len(end) if place >= 0 and not after[:place].strip() else 0

    def _messages(self, dialogue: Dialogue) -> list[dict[str, str]]:
        messages = []
        system_text = f"{dialogue.system}\n\n" if dialogue.system and not self.takes_system else ""
        if dialogue.system and self.takes_system:
            messages.append({"role": "system", "content": dialogue.system})
        for turn in dialogue.turns:
            question = " ".join(piece or "" for piece in turn.question)
            messages.append({"role": "user", "content": system_text + question})
            system_text = ""
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _takes_a_system_prompt(self) -> bool:
        """Whether the template has a place for it; else it stands before the first question."""
        system = {"role": "system", "content": "Be brief."}
        try:
            text, _ = self._tokenizer.render_chat(
                [system, {"role": "user", "content": "Hi"}], opened=True
            )
        except ConfigError:
            return False
        return system["content"] in text


def _with_marks(dialogue: Dialogue, mark: str) -> Dialogue:
    """The conversation with a text in place of each image."""
    image = f"{BEFORE_IMAGE}{mark}{AFTER_IMAGE}"
    turns = tuple(
        Turn(tuple(image if piece is None else piece for piece in turn.question), turn.answer)
        for turn in dialogue.turns
    )
    return Dialogue(turns, dialogue.system)


def _mark_beside(dialogue: Dialogue) -> str:
    return _unused(dialogue.transcript())


def _unused(text: str) -> str:
    """A word that a text does not contain."""
    number = 0
    while (word := f"@@{number}@@") in text:
        number += 1
    return word
