"""From a caption to token ids, labels and image slots, as MiniGPT-4 lays them out.

A sequence is BOS, the prompt up to the image, the image's slots, the rest of the prompt, and the
answer with its end symbol; without a prompt (stage 1) BOS, slots, answer. Each text segment is
tokenized by itself, without special tokens; only the answer's tokens are learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.prompts import split_at_image

NO_LABEL = -100
"""Label of a position without a loss (PyTorch's ``ignore_index``)."""

Encode = Callable[[str], list[int]]

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int | None = 50) -> str:
    """Stage 1's cleaning: lower case, some punctuation to spaces, at most ``max_words`` words.

    Each of ``. ! " ( ) * # : ; ~`` becomes a space; runs of white space become one space.
    """
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:max_words])


@dataclass(frozen=True)
class TextSpec:
    """How captions become sequences.

    Attributes:
        encode: a text's token ids, without special tokens.
        bos_id: begins every sequence.
        pad_id: fills image slots and the right end; never learned, never seen by the model.
        num_image_tokens: slots of one image.
        max_answer_tokens: limit of the answer with its end symbol.
        end_symbol: appended to every answer.
        keep_end_symbol: a long answer loses its last words, so that the model still learns to
            stop; False cuts off the end symbol first, as the original does.
        prompts: full prompts, each with one image slot; empty for none (stage 1).
        prompt_per: one drawn prompt per "sample" or per "batch" (optimizer step).
        learn_pad: learn the padding token where a caption contains it; the original leaves every
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
    keep_end_symbol: bool = True
    prompts: tuple[str, ...] = ()
    prompt_per: Literal["sample", "batch"] = "sample"
    learn_pad: bool = True
    clean: bool = False
    max_words: int | None = 50


@dataclass(frozen=True)
class TokenSequence:
    """One sample's tokens; T positions.

    Attributes:
        input_ids: int64[T], ``pad_id`` in image slots.
        image_mask: bool[T], True in image slots.
        labels: int64[T], the token itself on answer positions, NO_LABEL elsewhere.
    """

    input_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    labels: NDArray[np.int64]


def build_sequence(spec: TextSpec, caption: str, prompt: str | None = None) -> TokenSequence:
    """Lay out one sample.

    Args:
        spec: the tokenizer and its limits.
        caption: what the model should answer.
        prompt: a full prompt with one image slot, or None.

    Raises:
        ConfigError: if the prompt has not exactly one image slot.
    """
    if spec.clean:
        caption = clean_caption(caption, spec.max_words)
    before, after = _prompt_ids(spec.encode, prompt) if prompt is not None else ((), ())
    answer = answer_ids(spec, caption)
    image_at = 1 + len(before)
    answer_at = image_at + spec.num_image_tokens + len(after)
    slots = [spec.pad_id] * spec.num_image_tokens
    input_ids = np.asarray([spec.bos_id, *before, *slots, *after, *answer], dtype=np.int64)
    image_mask = np.zeros(len(input_ids), dtype=np.bool_)
    image_mask[image_at : image_at + spec.num_image_tokens] = True
    labels = np.full(len(input_ids), NO_LABEL, dtype=np.int64)
    labels[answer_at:] = input_ids[answer_at:]
    if not spec.learn_pad:
        labels[labels == spec.pad_id] = NO_LABEL
    return TokenSequence(input_ids, image_mask, labels)


def answer_ids(spec: TextSpec, caption: str) -> list[int]:
    """Token ids of the answer with its end symbol, at most ``max_answer_tokens``."""
    ids = spec.encode(caption + spec.end_symbol)
    limit = spec.max_answer_tokens
    if len(ids) <= limit or not spec.keep_end_symbol:
        return ids[:limit]
    # The end symbol's tokens are those behind what the caption alone gives: tokenized by itself
    # it would gain SentencePiece's leading space.
    alone = spec.encode(caption)
    common = 0
    while common < min(len(alone), len(ids) - 1) and alone[common] == ids[common]:
        common += 1
    end = ids[common:][-limit:]
    return ids[: limit - len(end)] + end


@lru_cache(maxsize=256)
def _prompt_ids(encode: Encode, prompt: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before, after = split_at_image(prompt)
    return tuple(encode(before)), tuple(encode(after))
