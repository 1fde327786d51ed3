"""Batched greedy generation: the same answers alone or together, stopped by text."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.generate import generate

LONG = "###Human: <Img><ImageHere></Img> Please provide a detailed description. ###Assistant: "
SHORT = "###Human: <Img><ImageHere></Img> Hi ###Assistant: "


def test_a_batch_of_different_lengths_answers_like_each_alone(vicuna, images) -> None:
    prompts = [LONG, "", SHORT]
    together = generate(vicuna.model, vicuna.tokenizer, images, prompts, max_new_tokens=12)
    for index, prompt in enumerate(prompts):
        alone = generate(
            vicuna.model, vicuna.tokenizer, images[index : index + 1], [prompt], max_new_tokens=12
        )
        assert alone == [together[index]]
        assert len(alone[0].token_ids) == 12 and not alone[0].stopped


def test_stops_at_text_whatever_its_tokens(vicuna, images) -> None:
    def answer(stop: str, limit: int = 12):
        return generate(
            vicuna.model, vicuna.tokenizer, images[:1], [LONG], max_new_tokens=limit, stop=stop
        )[0]

    free = answer("")
    decoded = vicuna.tokenizer.decode(free.token_ids)
    stop = decoded[len(decoded) // 2 :][:3]
    stopped = answer(stop)
    assert stopped.stopped and stop not in stopped.text
    assert stopped.text == decoded.split(stop)[0].strip()
    assert len(stopped.token_ids) < len(free.token_ids)
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


def test_the_end_token_stops_too(vicuna, images, monkeypatch) -> None:
    import dataclasses

    free = generate(vicuna.model, vicuna.tokenizer, images[:1], [SHORT], max_new_tokens=6)[0]
    fourth = free.token_ids[3]
    tokenizer = dataclasses.replace(vicuna.tokenizer, eos_id=fourth)
    cut = generate(vicuna.model, tokenizer, images[:1], [SHORT], max_new_tokens=6)[0]
    first = free.token_ids.index(fourth)
    assert cut.stopped and cut.token_ids == free.token_ids[: first + 1]


def test_no_prompt_sees_begin_and_image(reference) -> None:
    size = reference.bundle.architecture.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    answers = generate(reference.model, reference.tokenizer, images, ["", ""], max_new_tokens=3)
    assert answers[0] == answers[1] and len(answers[0].token_ids) == 3


def test_prompts_and_images_must_match(vicuna, images) -> None:
    with pytest.raises(ConfigError, match="3 images but 1 prompts"):
        generate(vicuna.model, vicuna.tokenizer, images, [LONG])
    with pytest.raises(ConfigError, match="image slots"):
        generate(vicuna.model, vicuna.tokenizer, images[:1], ["no image here"])
    assert generate(vicuna.model, vicuna.tokenizer, images[:0], []) == []
