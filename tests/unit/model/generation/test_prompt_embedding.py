"""Several images and turns, batches, streams and beams say the same as one plain answer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.answer import GrowingAnswer
from mgpt4_hpc.model.generation.generate import Answer, Sampling, answer_prompts, stream
from mgpt4_hpc.model.generation.prompt_embedding import build_context
from mgpt4_hpc.prompts import IMAGE_TAG

TWO_IMAGES = (
    f"###Human: {IMAGE_TAG} What is this? ###Assistant: a cat"
    f"###Human: {IMAGE_TAG} And this? ###Assistant: "
)
ONE_IMAGE = f"###Human: {IMAGE_TAG} Hi ###Assistant: "
TEXT_ONLY = "###Human: Who are you? ###Assistant: "


@pytest.fixture
def features(vicuna) -> torch.Tensor:
    images = vicuna.tensors["stage2.images"]
    return vicuna.model.encode_images(images)


def say(vicuna, prompts, images, sampling=None, **more) -> list[Answer]:
    sampling = sampling or Sampling(max_new_tokens=12)
    return answer_prompts(vicuna.model, vicuna.tokenizer, prompts, images, sampling, **more)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12),
        Sampling(max_new_tokens=12, temperature=1, top_p=0.9, repetition_penalty=1.05),
        Sampling(max_new_tokens=8, num_beams=3),
    ],
    ids=["greedy", "drawn", "beams"],
)
def test_a_batch_of_different_shapes_answers_like_each_alone(vicuna, features, sampling) -> None:
    prompts = [TWO_IMAGES, TEXT_ONLY, ONE_IMAGE, ""]
    images = [features[:2], features[:0], features[1:2], features[:1]]
    seeds = [11, 12, 13, 14]
    together = say(vicuna, prompts, images, sampling, seeds=seeds)
    for prompt, own, seed, answer in zip(prompts, images, seeds, together, strict=True):
        assert say(vicuna, [prompt], [own], sampling, seeds=[seed]) == [answer]
    if sampling.temperature:
        assert say(vicuna, prompts, images, sampling, seeds=[1, 2, 3, 4]) != together
        assert say(vicuna, prompts, images, sampling) == say(vicuna, prompts, images, sampling)


def test_images_stand_where_their_slots_are(vicuna, features) -> None:
    prompt = f"a{IMAGE_TAG}b{IMAGE_TAG}"
    context = build_context(vicuna.model, vicuna.tokenizer, [prompt], [features[:2]])
    embeds_ID = vicuna.model.project(features[:2])
    found = [
        start
        for image in embeds_ID
        for start in range(context.embeds_BTD.shape[1] - len(image) + 1)
        if torch.equal(context.embeds_BTD[0, start : start + len(image)], image)
    ]
    assert len(found) == 2 and found[1] >= found[0] + len(embeds_ID[0])
    assert say(vicuna, [prompt], [features[:2]]) != say(vicuna, [prompt], [features[[1, 0]]])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_pieces_are_the_answer(vicuna, features, temperature) -> None:
    # A random model speaks in broken bytes: the worst case for handing out text early.
    for seed in range(6):
        sampling = Sampling(max_new_tokens=24, temperature=temperature, seed=seed)
        (whole,) = say(vicuna, [ONE_IMAGE], [features[:1]], sampling)
        pieces, answer = drain(
            stream(vicuna.model, vicuna.tokenizer, ONE_IMAGE, features[:1], sampling)
        )
        assert answer == whole and "".join(pieces) == whole.text


def test_beams_come_in_one_piece_and_are_no_worse_than_greed(vicuna, features) -> None:
    plain, beams = Sampling(max_new_tokens=6), Sampling(max_new_tokens=6, num_beams=4)
    pieces, found = drain(stream(vicuna.model, vicuna.tokenizer, ONE_IMAGE, features[:1], beams))
    assert pieces == [found.text]
    (greedy,) = say(vicuna, [ONE_IMAGE], [features[:1]], plain)
    assert likelihood(vicuna, features, found) >= likelihood(vicuna, features, greedy) - 1e-5


def test_beams_stop_at_text(vicuna, features) -> None:
    beams = Sampling(max_new_tokens=8, num_beams=2)
    (free,) = say(vicuna, [ONE_IMAGE], [features[:1]], beams)
    stop = vicuna.tokenizer.decode(free.token_ids)[2:5]
    (stopped,) = say(vicuna, [ONE_IMAGE], [features[:1]], beams, stop=stop)
    assert stop not in stopped.text


def test_a_stop_symbol_is_never_shown(vicuna) -> None:
    tokenizer = vicuna.tokenizer
    row, shown = GrowingAnswer(tokenizer, "###"), ""
    for token in tokenizer.encode("a red cat # one ## two ###Human: and more"):
        row.take(token)
        shown += row.piece()
        assert "###" not in shown
    assert row.stopped
    assert shown + row.piece(last=True) == row.answer().text == "a red cat # one ## two"


@pytest.mark.parametrize("stops", [("###", "two", "cat #!"), ("##", "two", "###")])
def test_the_first_of_several_stop_texts_ends_an_answer(vicuna, stops: tuple[str, ...]) -> None:
    row, shown = GrowingAnswer(vicuna.tokenizer, stops), ""
    for token in vicuna.tokenizer.encode("a red cat # one two ###Human: and more"):
        row.take(token)
        shown += row.piece()
    assert row.stopped
    assert shown + row.piece(last=True) == row.answer().text == "a red cat # one"


def test_half_a_stop_symbol_at_the_limit_is_text(vicuna) -> None:
    row, shown = GrowingAnswer(vicuna.tokenizer, "###"), ""
    for token in vicuna.tokenizer.encode("what ##"):
        row.take(token)
        shown += row.piece()
    assert shown == "what" and shown + row.piece(last=True) == row.answer().text == "what ##"


def test_what_outgrows_the_context_is_refused(vicuna, features) -> None:
    with pytest.raises(ConfigError, match="context of 512") as caught:
        say(vicuna, [ONE_IMAGE], [features[:1]], Sampling(max_new_tokens=500))
    assert "allow at most" in str(caught.value)
    long = ONE_IMAGE + "word " * 600
    with pytest.raises(ConfigError, match="new conversation"):
        drain(stream(vicuna.model, vicuna.tokenizer, long, features[:1], Sampling()))


def test_slots_and_images_must_match(vicuna, features) -> None:
    with pytest.raises(ConfigError, match="1 image slots for 2 images"):
        say(vicuna, [ONE_IMAGE], [features[:2]])


def test_the_end_token_ends_beams(vicuna, features) -> None:
    beams = Sampling(max_new_tokens=6, num_beams=2)
    (free,) = say(vicuna, [ONE_IMAGE], [features[:1]], beams)
    tokenizer = dataclasses.replace(vicuna.tokenizer, eos_id=free.token_ids[0])
    (cut,) = answer_prompts(vicuna.model, tokenizer, [ONE_IMAGE], [features[:1]], beams)
    assert cut.stopped or tokenizer.eos_id not in cut.token_ids


def drain(pieces) -> tuple[list[str], Answer]:
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


@torch.no_grad()
def likelihood(vicuna, features, answer: Answer) -> float:
    """Mean log-likelihood per token, computed without a cache."""
    model = vicuna.model
    context = build_context(model, vicuna.tokenizer, [ONE_IMAGE], [features[:1]])
    ids = torch.tensor([answer.token_ids])
    embeds = torch.cat([context.embeds_BTD, model.language_model.get_input_embeddings()(ids)], 1)
    logits = model.language_model(inputs_embeds=embeds).logits[0, -ids.shape[1] - 1 : -1]
    chosen = logits.log_softmax(-1).gather(1, ids.T).sum().item()
    assert math.isfinite(chosen)
    return chosen / ids.shape[1]
