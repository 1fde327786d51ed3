"""Greedy answers to images and prompts, in batches.

Shapes: B prompts (one image each), T positions, I image tokens, D language width, K vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.minigpt4 import MiniGPT4
from mgpt4_hpc.model.precision import autocast
from mgpt4_hpc.model.preprocess import normalise
from mgpt4_hpc.model.tokenizer import TextTokenizer
from mgpt4_hpc.prompts import split_at_image


@dataclass(frozen=True)
class Answer:
    """What the model said about one image.

    Attributes:
        text: without the stop symbol and what follows it.
        stopped: whether it ended by itself, not by the limit.
        token_ids: every generated id, those of the stop symbol included.
    """

    text: str
    stopped: bool
    token_ids: tuple[int, ...]


def generate(
    model: MiniGPT4,
    tokenizer: TextTokenizer,
    images_u8_NCHW: torch.Tensor,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 300,
    stop: str = "",
) -> list[Answer]:
    """Answer each prompt about the image beside it, always taking the likeliest token.

    Args:
        model: the model; it must be on one device.
        tokenizer: its language model's.
        images_u8_NCHW: uint8 pixels of the model's image size, one per prompt.
        prompts: each with one image slot, or empty: then the model sees begin and image only, as
            in stage 1.
        max_new_tokens: limit per answer.
        stop: text that ends an answer beside the end token; looked for in the decoded text, since
            its tokens depend on what stands before it. Empty: the end token only.

    Raises:
        ConfigError: if a prompt has not exactly one image slot.
    """
    _require_pairs(len(images_u8_NCHW), len(prompts))
    if not prompts:
        return []
    features = model.encode_images(normalise(images_u8_NCHW, model.device))
    return generate_from_features(
        model, tokenizer, features, prompts, max_new_tokens=max_new_tokens, stop=stop
    )


@torch.no_grad()
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
    _require_pairs(len(features_BIQ), len(prompts))
    ids_BT, image_mask_BT, attention_BT = _left_padded(tokenizer, prompts, features_BIQ.shape[1])
    ids_BT, image_mask_BT = ids_BT.to(model.device), image_mask_BT.to(model.device)
    attention_BT = attention_BT.to(model.device)
    embeds_BTD = model.embed(ids_BT, image_mask_BT, model.project(features_BIQ))
    rows = [_Row(tokenizer, stop) for _ in prompts]
    cache = None
    inputs = {"inputs_embeds": embeds_BTD}
    # Padding on the left must not shift the positions that the text is seen at.
    positions_BT = (attention_BT.long().cumsum(1) - 1).clamp_(min=0)
    for _ in range(max_new_tokens):
        with autocast(model.device, model.dtype):
            output = model.language_model(
                **inputs,
                attention_mask=attention_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        next_B = output.logits[:, -1].float().argmax(dim=-1)
        for row, token in zip(rows, next_B.tolist(), strict=True):
            row.take(token)
        if all(row.stopped for row in rows):
            break
        cache = output.past_key_values
        inputs = {"input_ids": next_B.unsqueeze(1)}
        attention_BT = torch.cat([attention_BT, attention_BT.new_ones(len(rows), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    return [row.answer() for row in rows]


def _require_pairs(num_images: int, num_prompts: int) -> None:
    if num_images != num_prompts:
        raise ConfigError(f"{num_images} images but {num_prompts} prompts")


class _Row:
    """One answer while it grows."""

    def __init__(self, tokenizer: TextTokenizer, stop: str) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.stopped = False

    def take(self, token: int) -> None:
        """Append a token unless the answer has ended; notice its end."""
        if self.stopped:
            return
        self.tokens.append(token)
        ended = token == self.tokenizer.eos_id
        # The whole answer is decoded: some tokens change their text with what stands before them.
        self.stopped = ended or bool(self.stop and self.stop in self.tokenizer.decode(self.tokens))

    def answer(self) -> Answer:
        """The finished answer."""
        tokens = self.tokens
        if tokens and tokens[-1] == self.tokenizer.eos_id:
            tokens = tokens[:-1]
        text = self.tokenizer.decode(tokens)
        if self.stop:
            text = text.split(self.stop, 1)[0]
        return Answer(text.strip(), self.stopped, tuple(self.tokens))


def _left_padded(
    tokenizer: TextTokenizer, prompts: Sequence[str], num_image_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, image slots and attention of prompts of different lengths, ending together (B, T)."""
    rows = []
    for prompt in prompts:
        before, after = split_at_image(prompt) if prompt else ("", "")
        head = [tokenizer.bos_id, *(tokenizer.encode(before) if before else [])]
        tail = tokenizer.encode(after) if after else []
        rows.append((head, tail))
    lengths = [len(head) + num_image_tokens + len(tail) for head, tail in rows]
    ids = torch.full((len(rows), max(lengths)), tokenizer.pad_id)
    image_mask = torch.zeros(ids.shape, dtype=torch.bool)
    attention = torch.zeros(ids.shape, dtype=torch.bool)
    for index, ((head, tail), length) in enumerate(zip(rows, lengths, strict=True)):
        start = ids.shape[1] - length
        slots = start + len(head)
        ids[index, start:slots] = torch.tensor(head)
        ids[index, slots + num_image_tokens :] = torch.tensor(tail, dtype=torch.long)
        image_mask[index, slots : slots + num_image_tokens] = True
        attention[index, start:] = True
    return ids, image_mask, attention
