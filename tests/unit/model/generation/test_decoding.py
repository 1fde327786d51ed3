"""Beam search."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mgpt4_hpc.model.generation.generate import Answer, Sampling, answer_prompts, stream
from mgpt4_hpc.model.generation.prompt_embedding import build_context
from tests.unit.model.generation.answering import ONE_IMAGE, drain, say


@pytest.fixture
def features(vicuna) -> torch.Tensor:
    images = vicuna.tensors["stage2.images"]
    return vicuna.model.encode_images(images)


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


def test_the_end_token_ends_beams(vicuna, features) -> None:
    beams = Sampling(max_new_tokens=6, num_beams=2)
    (free,) = say(vicuna, [ONE_IMAGE], [features[:1]], beams)
    tokenizer = dataclasses.replace(vicuna.tokenizer, eos_id=free.token_ids[0])
    (cut,) = answer_prompts(vicuna.model, tokenizer, [(ONE_IMAGE, features[:1])], beams)
    assert cut.stopped or tokenizer.eos_id not in cut.token_ids


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
