"""Answers that grow side by side: each joins when its prompt comes, and leaves when it ends.

All rows of the key-value cache end in the same column, so a step writes one column for all of
them; shorter rows have padding on the left, which attention does not see. A prompt is computed by
itself before it joins: its first token is bit for bit the one that it gets alone. The later ones
differ by rounding only, since matrix products of another number of rows may sum in another order.

Shapes: B rows, T columns, K vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from mgpt4_hpc.model.generation.answer import GrowingAnswer
from mgpt4_hpc.model.generation.decoding import forward, new_cache
from mgpt4_hpc.model.generation.prompt_embedding import Prompt, build_context, require_room
from mgpt4_hpc.model.generation.sampling import Picker, Sampling, row_seed
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4


class Row(GrowingAnswer):
    """One answer of a batch.

    Args:
        tokenizer: turns its tokens into text.
        stop: as of ``GrowingAnswer``.
        sampling: how its tokens are chosen; without beams.
        num_prompt: positions that its prompt takes.

    Attributes:
        num_cached: columns of the cache that are its own.
    """

    def __init__(
        self, tokenizer: TextTokenizer, stop: tuple[str, ...], sampling: Sampling, num_prompt: int
    ) -> None:
        super().__init__(tokenizer, stop)
        self.num_cached = num_prompt
        self._limit = sampling.max_new_tokens
        plain = sampling.temperature == 0 and sampling.repetition_penalty == 1
        self._picker = None if plain else Picker(sampling, [row_seed(sampling.seed, 0)])

    @property
    def num_left(self) -> int:
        """Tokens that may still follow."""
        return 0 if self.stopped else self._limit - len(self.tokens)

    @property
    def ended(self) -> bool:
        """Whether no token will follow."""
        return self.num_left <= 0

    def choose(self, logits_1K: torch.Tensor, likeliest: int) -> None:
        """Take the next token, given the logits and their maximum."""
        if self._picker is None:
            self.take(likeliest)
            return
        taken_1T = torch.tensor([self.tokens], dtype=torch.long, device=logits_1K.device)
        self.take(int(self._picker(logits_1K, taken_1T)))


class GrowingBatch:
    """Rows that share one cache.

    Attributes:
        rows: in the order in which they joined.
    """

    def __init__(self, model: MiniGPT4, tokenizer: TextTokenizer) -> None:
        self.rows: list[Row] = []
        self._model, self._tokenizer = model, tokenizer
        self._cache: Any = None

    @torch.no_grad()
    def join(
        self,
        prompt: Prompt,
        features_NIQ: torch.Tensor,
        sampling: Sampling,
        stop: tuple[str, ...] = (),
    ) -> Row:
        """Compute a prompt and its answer's first token; the row stays unless that ended it.

        Args:
            prompt: with one slot per image.
            features_NIQ: the towers' features of its images.
            sampling: how tokens are chosen; the draws are those of ``generate.stream``.
            stop: texts that end the answer beside the end token.

        Raises:
            ConfigError: if images and slots do not match, or the answer could outgrow the context.
        """
        context = build_context(self._model, self._tokenizer, [prompt], [features_NIQ])
        length = context.attention_BT.shape[1]
        require_room(self._model, length, sampling.max_new_tokens)
        row, cache = Row(self._tokenizer, stop, sampling, length), new_cache()
        logits_1K = forward(
            self._model,
            {"inputs_embeds": context.embeds_BTD},
            context.attention_BT,
            torch.arange(length, device=self._model.device).unsqueeze(0),
            cache,
        )[0]
        row.choose(logits_1K, int(logits_1K.argmax()))
        if not row.ended:
            self._append(cache, length)
            self.rows.append(row)
        return row

    @torch.no_grad()
    def step(self) -> None:
        """Choose the next token of each row; rows that it ends stay until ``keep``."""
        if not self.rows:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        length_B = torch.tensor([row.num_cached for row in self.rows], device=device)
        width = self._cache.get_seq_length()
        columns_T = torch.arange(width + 1, device=device)
        attention_BT = columns_T >= (width - length_B).unsqueeze(1)
        logits_BK = forward(
            self._model, {"input_ids": ids_B1}, attention_BT, length_B.unsqueeze(1), self._cache
        )[0]
        for index, (row, token) in enumerate(
            zip(self.rows, logits_BK.argmax(dim=-1).tolist(), strict=True)
        ):
            row.num_cached += 1
            row.choose(logits_BK[index : index + 1], token)

    @torch.no_grad()
    def keep(self, rows: list[Row]) -> None:
        """Drop all other rows, and the columns that only they had."""
        if len(rows) == len(self.rows):
            return
        if not rows:
            self.rows, self._cache = [], None
            return
        indices = [index for index, row in enumerate(self.rows) if row in rows]
        width = max(row.num_cached for row in rows)
        self._replace(
            [
                (layer.keys[indices, :, -width:], layer.values[indices, :, -width:])
                for layer in self._cache.layers
            ]
        )
        self.rows = [self.rows[index] for index in indices]

    def columns_with(self, length: int) -> int:
        """Columns of all rows together once another one has joined and has this many."""
        widest = max([length, *(row.num_cached + row.num_left for row in self.rows)])
        return (len(self.rows) + 1) * widest

    def _append(self, cache: Any, length: int) -> None:
        if self._cache is None:
            self._cache = cache
            return
        missing = self._cache.get_seq_length() - length
        self._replace(
            [
                (_stacked(own.keys, new.keys, missing), _stacked(own.values, new.values, missing))
                for own, new in zip(self._cache.layers, cache.layers, strict=True)
            ]
        )

    def _replace(self, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """All layers at once: where memory runs out on the way there, the cache is as it was."""
        for layer, (keys, values) in zip(self._cache.layers, layers, strict=True):
            layer.keys, layer.values = keys, values


def _stacked(own: torch.Tensor, new: torch.Tensor, missing: int) -> torch.Tensor:
    """Both, one below the other, after the narrower got ``missing`` columns on the left."""
    if missing > 0:
        new = pad(new, (0, 0, missing, 0))
    elif missing < 0:
        own = pad(own, (0, 0, -missing, 0))
    return torch.cat([own, new])
