# ruff: noqa: N815 - tensor names carry their shape
"""Prompts of text and images, laid out side by side for the language model.

Shapes: B prompts, T positions, N images of all prompts, I image tokens, Q projector's input width,
D language width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgpt4_hpc.chat_format import Layout
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.prompts import IMAGE_SLOT, IMAGE_TAG

Prompt = str | Layout
"""A text with image slots, or a conversation that was laid out."""


@dataclass(frozen=True)
class Context:
    """Prompts padded on the left, so that all of them end together.

    Attributes:
        embeds_BTD: of text and images.
        attention_BT: False on padding.
    """

    embeds_BTD: torch.Tensor
    attention_BT: torch.Tensor


def build_context(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    prompts: Sequence[Prompt],
    features: Sequence[torch.Tensor],
) -> Context:
    """Embed prompts with their images.

    Args:
        model: the model.
        tokenizer: its language model's.
        prompts: each with one slot per image of its own; an empty text stands for begin and images.
        features: per prompt the towers' features (images, I, Q) of its images, in their order.

    Raises:
        ConfigError: if slots and images do not match.
    """
    rows = [
        _pieces(tokenizer, prompt, len(images))
        for prompt, images in zip(prompts, features, strict=True)
    ]
    num_slots = model.architecture.num_image_tokens
    lengths = [sum(map(len, row)) + (len(row) - 1) * num_slots for row in rows]
    ids_BT = torch.full((len(rows), max(lengths)), tokenizer.pad_id)
    image_mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    attention_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        at = ids_BT.shape[1] - length
        attention_BT[index, at:] = True
        for number, piece in enumerate(row):
            if number:
                image_mask_BT[index, at : at + num_slots] = True
                at += num_slots
            ids_BT[index, at : at + len(piece)] = torch.tensor(piece, dtype=torch.long)
            at += len(piece)
    features_NIQ = torch.cat([images.to(model.device) for images in features])
    embeds_BTD = model.embed(
        ids_BT.to(model.device), image_mask_BT.to(model.device), model.project(features_NIQ)
    )
    return Context(embeds_BTD, attention_BT.to(model.device))


def prompt_length(layout: Layout, num_image_tokens: int) -> int:
    """Positions that a prompt takes, images included."""
    return sum(num_image_tokens if run is None else len(run.ids) for run in layout)


def context_length(model: MiniGPT4) -> int | None:
    """Positions that the language model was made for; None if it does not say."""
    limit = getattr(model.language_model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def require_room(model: MiniGPT4, longest: int, max_new_tokens: int) -> None:
    """Refuse what would go beyond the positions that the language model knows.

    Raises:
        ConfigError: with the numbers.
    """
    limit = context_length(model)
    if limit is None or longest + max_new_tokens <= limit:
        return
    room = limit - longest
    raise ConfigError(
        f"the prompt has {longest} tokens and the answer may have {max_new_tokens}, together more "
        f"than the language model's context of {limit}",
        why="it never saw such positions, and answers nonsense there",
        fix=f"allow at most {room} new tokens"
        if room > 0
        else "shorten the prompt, or begin a new conversation",
    )


def _pieces(tokenizer: TextTokenizer, prompt: Prompt, num_images: int) -> list[list[int]]:
    """Token ids before the first image, between images, and after the last."""
    pieces: list[list[int]] = [[]]
    if isinstance(prompt, str):
        pieces[0].append(tokenizer.bos_id)
        texts = prompt.split(IMAGE_SLOT) if prompt else [""] * (num_images + 1)
        for place, text in enumerate(texts):
            if place:
                pieces.append([])
            pieces[-1] += tokenizer.encode(text) if text else []
    else:
        for run in prompt:
            if run is None:
                pieces.append([])
            else:
                pieces[-1] += run.ids
    if len(pieces) != num_images + 1:
        raise ConfigError(
            f"the prompt {prompt!r} has {len(pieces) - 1} image slots for {num_images} images",
            fix=f"write {IMAGE_TAG} once for each image, where it belongs",
        )
    return pieces
