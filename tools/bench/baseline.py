"""A training step with the original's choices, on the same weights and the same batches.

Written anew after reading the original's code, to be raced against: the embeddings put together
sample by sample, the prompt's ids sent to the device one text at a time, lengths read back from
the device in the loop, a padding mask, eager attention, logits in float32 at every position,
fp16 autocast with a gradient scaler on a GPU, the Q-Former's weights in float32, the loss read in
every step. In its favour: tokens come ready, nothing is reduced over ranks.

Shapes: B batch, T tokens, I image tokens, A answer tokens (padded), D language width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.data.batching.text import NO_LABEL
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.precision import cast_matmul_weights
from mgpt4_hpc.model.nn.preprocess import normalise


@dataclass(frozen=True)
class Texts:
    """One sample's three texts as ids, as a tokenizer would give them: (1, length) each."""

    before: torch.Tensor
    after: torch.Tensor
    answer: torch.Tensor


@dataclass(frozen=True)
class Samples:
    """What the original's loader hands over: float pixels (B, 3, H, W) and texts."""

    pixels: torch.Tensor
    texts: tuple[Texts, ...]


def to_samples(batch: Batch, *, pin: bool = False) -> Samples:
    """Take a batch of ours apart again. Not a part of the timed step."""
    texts = []
    for ids, mask, labels, seen in zip(
        batch.input_ids_BT,
        batch.image_mask_BT,
        batch.labels_BT,
        batch.attention_mask_BT,
        strict=True,
    ):
        slots = mask.nonzero().flatten()
        first_answer = int((labels != NO_LABEL).nonzero()[0])
        texts.append(
            Texts(
                before=ids[1 : slots[0]].unsqueeze(0),
                after=ids[slots[-1] + 1 : first_answer].unsqueeze(0),
                answer=ids[first_answer : int(seen.sum())].unsqueeze(0),
            )
        )
    pixels = normalise(batch.images_NCHW)
    return Samples(pixels.pin_memory() if pin else pixels, tuple(texts))


class ReferenceStep:
    """Forward, backward and update as the original does them.

    Args:
        model: inside ``as_the_original(model, ...)``.
        config: learning rate and AdamW's settings.
        half: fp16 autocast and a gradient scaler.
        bos_id: begins every sequence.
        pad_id: fills the right end.
    """

    def __init__(
        self, model: MiniGPT4, config: TrainConfig, *, half: bool, bos_id: int = 1, pad_id: int = 0
    ) -> None:
        self.model, self.half = model, half
        self.bos_id, self.pad_id = bos_id, pad_id
        named = list(model.llama_proj.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for _, p in named if p.ndim > 1],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
        )
        self.scaler = torch.amp.GradScaler("cuda") if half else None

    def __call__(self, samples: Samples) -> float:
        loss = self.loss(samples)
        if self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def loss(self, samples: Samples) -> torch.Tensor:
        """Mean cross entropy of the batch's answer tokens."""
        with self._autocast():
            pixels = samples.pixels.to(self.model.device, non_blocking=True)
            features = self.model.connector(self.model.vision(pixels))
            images_BID = self.model.llama_proj(features)
            conditions_BTD, condition_mask_BT = self._conditions(images_BID, samples.texts)
            ids_BA, answer_mask_BA = self._answers(samples.texts)
            embeds_BTD, mask_BT, lengths = self._join(
                conditions_BTD, condition_mask_BT, self._embed(ids_BA), answer_mask_BA
            )
            begin_B1D = self._embed(torch.full_like(ids_BA[:, :1], self.bos_id))
            embeds_BTD = torch.cat([begin_B1D, embeds_BTD], dim=1)
            mask_BT = torch.cat([condition_mask_BT[:, :1], mask_BT], dim=1)
            targets_BT = torch.full(mask_BT.shape, NO_LABEL, device=self.model.device)
            targets_BA = ids_BA.masked_fill(answer_mask_BA == 0, NO_LABEL)
            for index, target_A in enumerate(targets_BA):
                start = lengths[index] + 1
                targets_BT[index, start : start + len(target_A)] = target_A
            logits_BTV = self.model.language_model(
                inputs_embeds=embeds_BTD, attention_mask=mask_BT, use_cache=False
            ).logits.float()
            shifted_BTV = logits_BTV[..., :-1, :].contiguous()
            wanted_BT = targets_BT[..., 1:].contiguous()
            return nn.functional.cross_entropy(shifted_BTV.flatten(0, 1), wanted_BT.flatten())

    def _autocast(self) -> Any:
        if self.half:
            return torch.autocast("cuda", dtype=torch.float16)
        return contextlib.nullcontext()

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        llm: Any = self.model.language_model
        embeds: torch.Tensor = llm.get_input_embeddings()(ids)
        return embeds

    def _conditions(
        self, images_BID: torch.Tensor, texts: tuple[Texts, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt and image of each sample, padded on the right, with its mask."""
        device = images_BID.device
        if not any(text.before.numel() or text.after.numel() for text in texts):
            return images_BID, torch.ones(images_BID.shape[:2], dtype=torch.int, device=device)
        wrapped = []
        for image_ID, text in zip(images_BID, texts, strict=True):
            before = self._embed(text.before.to(device))
            after = self._embed(text.after.to(device))
            wrapped.append(torch.cat([before, image_ID[None], after], dim=1)[0])
        longest = max(len(row) for row in wrapped)
        padding = self._embed(torch.tensor(self.pad_id, device=device))
        table_BTD = padding.expand(len(wrapped), longest, -1).clone()
        mask_BT = torch.zeros(len(wrapped), longest, dtype=torch.int, device=device)
        for index, row in enumerate(wrapped):
            table_BTD[index, : len(row)] = row
            mask_BT[index, : len(row)] = 1
        return table_BTD, mask_BT

    def _answers(self, texts: tuple[Texts, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(text.answer.shape[1] for text in texts)
        ids_BA = torch.full((len(texts), longest), self.pad_id)
        mask_BA = torch.zeros(ids_BA.shape, dtype=torch.int)
        for index, text in enumerate(texts):
            ids_BA[index, : text.answer.shape[1]] = text.answer[0]
            mask_BA[index, : text.answer.shape[1]] = 1
        return ids_BA.to(self.model.device), mask_BA.to(self.model.device)

    def _join(
        self,
        conditions_BTD: torch.Tensor,
        condition_mask_BT: torch.Tensor,
        answers_BAD: torch.Tensor,
        answer_mask_BA: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Each answer right behind its own prompt; its length is asked of the device."""
        embeds, masks, lengths = [], [], []
        for index in range(len(conditions_BTD)):
            length = condition_mask_BT[index].sum()
            lengths.append(length)
            condition_TD, mask_T = conditions_BTD[index], condition_mask_BT[index]
            embeds.append(
                torch.cat([condition_TD[:length], answers_BAD[index], condition_TD[length:]])
            )
            masks.append(torch.cat([mask_T[:length], answer_mask_BA[index], mask_T[length:]]))
        return torch.stack(embeds), torch.stack(masks), lengths


@contextlib.contextmanager
def as_the_original(model: MiniGPT4, *, half: bool) -> Iterator[None]:
    """The same weights with eager attention, uncompiled, nothing recomputed.

    In fp16 if ``half``, else in float32: the original switches its autocast off on a CPU. On
    leaving everything is as it was; bf16 weights of ordinary size survive the way through both.
    """
    dtype = torch.float16 if half else torch.float32
    llm: Any = model.language_model
    qformer: Any = getattr(model.connector, "qformer", None)
    blocks: Any = model.vision.get_submodule("blocks")
    configs = [llm.config, *([qformer.config] if qformer is not None else [])]
    attentions = [block.attn for block in blocks]
    before = [config._attn_implementation for config in configs]
    fused = [attention.fused_attn for attention in attentions]
    hidden = [_hide(module, "_compiled_call_impl", "forward") for module in model.modules()]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        for attention in attentions:
            attention.fused_attn = False
        _cast(llm, dtype)
        cast_matmul_weights(model.vision, dtype)
        cast_matmul_weights(model.connector, torch.float32)
        yield
    finally:
        _cast(llm, model.dtype)
        cast_matmul_weights(model.vision, model.vision_dtype)
        cast_matmul_weights(model.connector, model.vision_dtype)
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation = value
        for attention, flag in zip(attentions, fused, strict=True):
            attention.fused_attn = flag
        for module, attributes in zip(model.modules(), hidden, strict=True):
            module.__dict__.update(attributes)
        model.forget_replays()


def _hide(module: nn.Module, *names: str) -> dict[str, Any]:
    """Take what was put over a module's own call away; returns it."""
    return {name: module.__dict__.pop(name) for name in names if name in module.__dict__}


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """One tensor at a time, so that weights are never there twice."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
