"""Failed answers: texts that do not end, and texts that go round in circles.

MiniGPT-4's paper counts these by eye (a third of the answers after stage 1, a fiftieth after
stage 2) and names them repetitive sentences and fragmented, incomplete ones. Here they are two pure
functions of the text, so that a number means the same on every machine.
"""

from __future__ import annotations

import re

TERMINAL_PUNCTUATION = (".", "!", "?", '."', '!"', '?"', ".)", "\u2026")
"""An answer that was not cut off ends with one of these."""

MIN_SENTENCE_WORDS = 3
"""Shorter sentences ("Yes.", "It is.") may be said twice."""

SHORT_LOOP_TIMES = 3
"""Phrases of one to three words are a loop when they stand this often in a row ("very, very" is
emphasis, "very very very" is not)."""

LONG_LOOP_TIMES = 2
"""Phrases of four and more words are a loop when they follow themselves at once."""

MAX_LOOP_WORDS = 24
"""Longest phrase looked for; longer loops show as repeated sentences."""

_SENTENCE_END = re.compile(r"[.!?\n]+")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")


def words_of(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def is_incomplete(text: str, stopped: bool = True) -> bool:
    """Whether an answer lacks its end.

    Args:
        text: the answer, without the stop symbol.
        stopped: whether generation ended by the stop symbol rather than by the token limit.

    Returns:
        True if it ran into the limit, is empty, or does not end with terminal punctuation.
    """
    return not stopped or not text.strip().endswith(TERMINAL_PUNCTUATION)


def is_repetitive(text: str) -> bool:
    """Whether an answer says a sentence (or a line) twice, or loops over a phrase."""
    return repeats_sentence(text) or loops(words_of(text))


def repeats_sentence(text: str) -> bool:
    """Whether a sentence of at least three words comes twice, anywhere in the text."""
    seen: set[tuple[str, ...]] = set()
    for sentence in _SENTENCE_END.split(text):
        words = tuple(words_of(sentence))
        if len(words) < MIN_SENTENCE_WORDS:
            continue
        if words in seen:
            return True
        seen.add(words)
    return False


def loops(words: list[str]) -> bool:
    """Whether a phrase follows itself at once: three times if short, twice from four words on."""
    for length in range(1, min(MAX_LOOP_WORDS, len(words) // 2) + 1):
        times = SHORT_LOOP_TIMES if length < 4 else LONG_LOOP_TIMES
        for start in range(len(words) - times * length + 1):
            phrase = words[start : start + length]
            if phrase * times == words[start : start + times * length]:
                return True
    return False


def is_empty(text: str) -> bool:
    """Whether an answer says nothing: no word in it."""
    return not words_of(text)


def echoes_prompt(text: str, instruction: str) -> bool:
    """Whether an answer begins with what it was asked, or consists of words of it in order.

    Args:
        text: the answer.
        instruction: what was asked, without the conversation format around it.
    """
    said, asked = words_of(text), words_of(instruction)
    if not said or len(asked) < MIN_SENTENCE_WORDS:
        return False
    return said[: len(asked)] == asked or (
        len(said) >= MIN_SENTENCE_WORDS and " ".join(said) in " ".join(asked)
    )
