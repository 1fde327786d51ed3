"""Answers that grow in one batch are those that each gets alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.generate import stream
from mgpt4_hpc.model.generation.growing_batch import GrowingBatch, Row
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.prompts import IMAGE_TAG

GREEDY = Sampling(max_new_tokens=12)
DRAWN = Sampling(max_new_tokens=17, temperature=1.3, top_p=0.9, seed=7)
PENALISED = Sampling(max_new_tokens=9, repetition_penalty=1.5)
ASKED = [
    (f"{IMAGE_TAG} What is it?", 1, GREEDY, ()),
    ("No image here, only a text that is rather long", 0, DRAWN, ()),
    (f"{IMAGE_TAG} and {IMAGE_TAG}", 2, PENALISED, ()),
    (f"{IMAGE_TAG} What?", 1, Sampling(max_new_tokens=1), ()),
    ("Hi", 0, Sampling(max_new_tokens=25), ("e", "zz")),
]


def features(model, number: int) -> torch.Tensor:
    size = model.architecture
    shape = (number, size.num_image_tokens, size.projector_in)
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def alone(world, prompt: str, images: int, sampling: Sampling, stop: tuple[str, ...]):
    pieces = stream(
        world.model, world.tokenizer, prompt, features(world.model, images), sampling, stop=stop
    )
    with pytest.raises(StopIteration) as end:
        while True:
            next(pieces)
    return end.value.value


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3)])
def test_rows_join_and_leave_without_a_trace(vicuna, order: tuple[int, ...]) -> None:
    batch = GrowingBatch(vicuna.model, vicuna.tokenizer)
    rows: dict[int, Row] = {}
    widths = set()
    waiting = iter(order)
    for turn in itertools.count():
        if turn % 3 == 0 and (number := next(waiting, None)) is not None:
            prompt, images, sampling, stop = ASKED[number]
            rows[number] = batch.join(prompt, features(vicuna.model, images), sampling, stop)
        batch.step()
        widths.add(len(batch.rows))
        batch.keep([row for row in batch.rows if not row.ended])
        if len(rows) == len(order) and not batch.rows:
            break
    assert max(widths) >= 3
    for number, row in rows.items():
        assert row.answer() == alone(vicuna, *ASKED[number]), ASKED[number]


def test_a_row_that_is_dropped_leaves_the_others_alone(vicuna) -> None:
    batch = GrowingBatch(vicuna.model, vicuna.tokenizer)
    long, short = ASKED[1], ASKED[0]
    dropped = batch.join(long[0], features(vicuna.model, 0), long[2])
    kept = batch.join(short[0], features(vicuna.model, 1), short[2])
    for _ in range(3):
        batch.step()
    batch.keep([kept])
    while not kept.ended:
        batch.step()
    assert len(dropped.tokens) == 4
    assert kept.answer() == alone(vicuna, *short)


def test_what_cannot_join_leaves_the_others_alone(vicuna) -> None:
    batch = GrowingBatch(vicuna.model, vicuna.tokenizer)
    row = batch.join("Hi", features(vicuna.model, 0), GREEDY)
    with pytest.raises(ConfigError, match="1 image slots for 0 images"):
        batch.join(ASKED[0][0], features(vicuna.model, 0), GREEDY)
    with pytest.raises(ConfigError, match="context"):
        batch.join("Hi", features(vicuna.model, 0), Sampling(max_new_tokens=10**6))
    while not row.ended:
        batch.step()
    assert row.answer() == alone(vicuna, "Hi", 0, GREEDY, ())


def test_rounding_is_all_that_a_neighbour_changes(vicuna, monkeypatch) -> None:
    """Logits differ by 1e-5 at most in float32, with and without neighbours."""
    from mgpt4_hpc.model.generation import growing_batch

    seen: list[torch.Tensor] = []

    def noting(*arguments):
        logits, cache = forward(*arguments)
        seen.append(logits)
        return logits, cache

    forward = growing_batch.forward
    monkeypatch.setattr(growing_batch, "forward", noting)
    lone = GrowingBatch(vicuna.model, vicuna.tokenizer)
    lone.join("Hi", features(vicuna.model, 0), GREEDY)
    for _ in range(5):
        lone.step()
    expected, seen = seen, []
    batch = GrowingBatch(vicuna.model, vicuna.tokenizer)
    batch.join("Hi", features(vicuna.model, 0), GREEDY)
    for number in range(5):
        batch.join(ASKED[number % 3][0], features(vicuna.model, ASKED[number % 3][1]), DRAWN)
    seen = seen[:1]
    for _ in range(5):
        batch.step()
    for one, other in zip(expected, seen, strict=True):
        torch.testing.assert_close(one[:1], other[:1], atol=1e-5, rtol=0)
