"""Answers to prompts of text and images: one by one or in batches, at once or as they grow.

Shapes: B prompts, I image tokens, Q projector's input width; N, C, H, W images and their pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.answer import Answer, GrowingAnswer
from mgpt4_hpc.model.generation.decoding import beam_search, next_tokens
from mgpt4_hpc.model.generation.prompt_embedding import Prompt, build_context, require_room
from mgpt4_hpc.model.generation.sampling import Picker, Sampling, row_seed
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.preprocess import normalise

__all__ = ["Answer", "Sampling", "answer_prompts", "generate", "generate_from_features", "stream"]


def answer_prompts(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    questions: Sequence[tuple[Prompt, torch.Tensor]],
    sampling: Sampling,
    *,
    stop: str = "",
    seeds: Sequence[int] | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Answer prompts that hold any number of images and turns each.

    Args:
        model: the model; it must be on one device.
        tokenizer: its language model's.
        questions: each a prompt with one slot per image of its own, or empty (begin and images, as
            in stage 1), and the towers' features (images, I, Q) of its images.
        sampling: how tokens are chosen.
        stop: text that ends an answer beside the end token; looked for in the decoded text, since
            its tokens depend on what stands before it. Empty: the end token only.
        seeds: one per question, for draws; by default they follow from ``sampling.seed`` and the
            question's place.
        between: called before each token; what it raises breaks the answers off. Not with beams.

    Raises:
        ConfigError: if images and slots do not match, or the answers could outgrow the context.
    """
    if not questions:
        return []
    prompts = [prompt for prompt, _ in questions]
    context = build_context(model, tokenizer, prompts, [features for _, features in questions])
    require_room(model, context.attention_BT.shape[1], sampling.max_new_tokens)
    rows = [GrowingAnswer(tokenizer, stop) for _ in prompts]
    if sampling.num_beams > 1:
        sequences = beam_search(model, tokenizer, context, sampling, stop)
        for row, tokens in zip(rows, sequences, strict=True):
            for token in tokens:
                row.take(token)
        return [row.answer() for row in rows]
    if seeds is None:
        seeds = [row_seed(sampling.seed, index) for index in range(len(prompts))]
    steps = next_tokens(model, context, Picker(sampling, seeds))
    for _ in range(sampling.max_new_tokens):
        between()
        for row, token in zip(rows, next(steps), strict=True):
            row.take(token)
        if all(row.stopped for row in rows):
            break
    return [row.answer() for row in rows]


def stream(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    prompt: Prompt,
    features_NIQ: torch.Tensor,
    sampling: Sampling,
    *,
    stop: str = "",
    seed: int | None = None,
) -> Generator[str, None, Answer]:
    """Answer one prompt piece by piece; the pieces together are the answer's text.

    The generator's return value (what ``yield from`` gives) is the whole answer. Beams are decided
    at the end, so with beams there is one piece. Arguments and errors as ``answer_prompts``.
    """
    if sampling.num_beams > 1:
        (whole,) = answer_prompts(model, tokenizer, [(prompt, features_NIQ)], sampling, stop=stop)
        yield whole.text
        return whole
    context = build_context(model, tokenizer, [prompt], [features_NIQ])
    require_room(model, context.attention_BT.shape[1], sampling.max_new_tokens)
    row = GrowingAnswer(tokenizer, stop)
    seed = row_seed(sampling.seed, 0) if seed is None else seed
    steps = next_tokens(model, context, Picker(sampling, [seed]))
    for _ in range(sampling.max_new_tokens):
        row.take(next(steps)[0])
        if row.stopped:
            break
        if piece := row.piece():
            yield piece
    if piece := row.piece(last=True):
        yield piece
    return row.answer()


def generate(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    images_u8_NCHW: torch.Tensor,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 300,
    stop: str = "",
) -> list[Answer]:
    """Answer each prompt about the one image beside it, always taking the likeliest token.

    Args:
        model: the model; it must be on one device.
        tokenizer: its language model's.
        images_u8_NCHW: uint8 pixels of the model's image size, one per prompt.
        prompts: each with one image slot, or empty: then the model sees begin and image only, as
            in stage 1.
        max_new_tokens: limit per answer.
        stop: as of ``answer_prompts``.

    Raises:
        ConfigError: if a prompt has not exactly one image slot.
    """
    features = model.encode_images(normalise(images_u8_NCHW, model.device))
    return generate_from_features(
        model, tokenizer, features, prompts, max_new_tokens=max_new_tokens, stop=stop
    )


def generate_from_features(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    features_BIQ: torch.Tensor,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 300,
    stop: str = "",
) -> list[Answer]:
    """As ``generate``, from the towers' features (B, I, Q)."""
    if len(features_BIQ) != len(prompts):
        raise ConfigError(f"{len(features_BIQ)} images but {len(prompts)} prompts")
    questions = [(p, one_IQ.unsqueeze(0)) for p, one_IQ in zip(prompts, features_BIQ, strict=True)]
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return answer_prompts(model, tokenizer, questions, sampling, stop=stop)
