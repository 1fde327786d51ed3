"""Several images and turns, batches, streams and beams say the same as one plain answer."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.generate import Sampling, stream
from mgpt4_hpc.model.generation.prompt_embedding import build_context
from mgpt4_hpc.prompts import IMAGE_TAG
from tests.unit.model.generation.answering import ONE_IMAGE, drain, say

TWO_IMAGES = (
    f"###Human: {IMAGE_TAG} What is this? ###Assistant: a cat"
    f"###Human: {IMAGE_TAG} And this? ###Assistant: "
)

TEXT_ONLY = "###Human: Who are you? ###Assistant: "


@pytest.fixture
def features(vicuna) -> torch.Tensor:
    images = vicuna.tensors["stage2.images"]
    return vicuna.model.encode_images(images)


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


@pytest.mark.slow
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
