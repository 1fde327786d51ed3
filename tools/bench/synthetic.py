"""Batches without data: random pixels and tokens, with the lengths that captions have.

Answers have 8 to 16 words in stage 1 and 50 to 90 in stage 2, evenly spread, at 1.3 tokens a word
(English text in LLaMA's vocabulary) and one end symbol, and are cut at the stage's limit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mgpt4_hpc.data.batching.batch import Batch, collate
from mgpt4_hpc.data.batching.text import NO_LABEL, TokenSequence

WORDS = {1: (8, 16), 2: (50, 90)}
TOKENS_PER_WORD = 1.3
MAX_ANSWER_TOKENS = {1: 32, 2: 160}

BEFORE_IMAGE = 7
"""Tokens of "###Human: <Img>"."""

AFTER_IMAGE = (18, 25, 22, 24)
"""Tokens from "</Img>" to "###Assistant: ", about, for each of the four instructions."""

_FIRST_ORDINARY = 3
"""Ids below are unknown, begin and end."""


def synthetic_batches(
    stage: int,
    batch_size: int,
    *,
    image_size: int,
    num_image_tokens: int,
    vocab_size: int,
    pin: bool = False,
    seed: int = 0,
) -> Iterator[Batch]:
    """Endless batches, each a function of (seed, its number)."""
    number = 0
    while True:
        rng = np.random.default_rng((seed, number))
        images_NCHW = rng.integers(0, 256, (batch_size, 3, image_size, image_size), dtype=np.uint8)
        sequences = [_sequence(rng, stage, num_image_tokens, vocab_size) for _ in range(batch_size)]
        positions = range(number * batch_size, (number + 1) * batch_size)
        batch = collate(
            images_NCHW,
            sequences,
            pad_id=0,
            keys=[str(position) for position in positions],
            positions=positions,
        )
        yield batch.pin_memory() if pin else batch
        number += 1


def _sequence(
    rng: np.random.Generator, stage: int, num_image_tokens: int, vocab_size: int
) -> TokenSequence:
    low, high = WORDS[stage]
    words = int(rng.integers(low, high + 1))
    answer = min(round(words * TOKENS_PER_WORD) + 1, MAX_ANSWER_TOKENS[stage])
    before = 1 + (BEFORE_IMAGE if stage == 2 else 0)
    after = int(rng.choice(AFTER_IMAGE)) if stage == 2 else 0
    ids = rng.integers(_FIRST_ORDINARY, vocab_size, before + num_image_tokens + after + answer)
    slots = slice(before, before + num_image_tokens)
    ids[0], ids[slots] = 1, 0
    image_mask = np.zeros(len(ids), dtype=np.bool_)
    image_mask[slots] = True
    labels = np.full(len(ids), NO_LABEL, dtype=np.int64)
    labels[-answer:] = ids[-answer:]
    return TokenSequence(ids, image_mask, labels, num_images=1)
