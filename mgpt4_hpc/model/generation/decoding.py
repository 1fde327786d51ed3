"""Token after token from a context, with the language model's cache; or the best of some beams.

Shapes: B prompts, T positions, K vocabulary, D language width.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from mgpt4_hpc.model.generation.prompt_embedding import Context
from mgpt4_hpc.model.generation.sampling import Picker, Sampling
from mgpt4_hpc.model.lazy import garbage_collector_off
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.precision import autocast


@torch.no_grad()
def next_tokens(model: MiniGPT4, context: Context, pick: Picker) -> Iterator[list[int]]:
    """The next token of each prompt, again and again; the caller decides when it is enough."""
    inputs = {"inputs_embeds": context.embeds_BTD}
    attention_BT = context.attention_BT
    # Padding on the left must not shift the positions that the text is seen at.
    positions_BT = (attention_BT.long().cumsum(1) - 1).clamp_(min=0)
    taken_BT = torch.zeros(len(attention_BT), 0, dtype=torch.long, device=attention_BT.device)
    cache = None
    while True:
        logits_BK, cache = forward(model, inputs, attention_BT, positions_BT, cache)
        next_B = pick(logits_BK, taken_BT)
        yield next_B.tolist()
        taken_BT = torch.cat([taken_BT, next_B.unsqueeze(1)], dim=1)
        inputs = {"input_ids": next_B.unsqueeze(1)}
        attention_BT = torch.cat([attention_BT, attention_BT.new_ones(len(next_B), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1


def forward(
    model: MiniGPT4,
    inputs: dict[str, torch.Tensor],
    attention_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    cache: Any,
) -> tuple[torch.Tensor, Any]:
    """Logits (B, K), float32, behind the last position, and the cache with the inputs in it.

    Args:
        model: the model.
        inputs: ``input_ids`` or ``inputs_embeds``.
        attention_BT: over all columns of the cache, those of the inputs included.
        positions_BT: of the inputs.
        cache: of what stands before them; None is the model's own kind, empty.
    """
    # transformers 5.24 renamed it.
    known = inspect.signature(model.language_model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    with _one_token_at_a_time(model):
        output = model.language_model(
            **inputs,
            **({} if cache is None else {name: cache}),
            attention_mask=attention_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1].float(), output[name]


def new_cache() -> Any:
    """An empty cache whose layers keep every column, also those beyond a sliding window."""
    with garbage_collector_off():
        from transformers import DynamicCache

    return DynamicCache()


@torch.no_grad()
def beam_search(
    model: MiniGPT4, tokenizer: TextTokenizer, context: Context, sampling: Sampling, stop: str
) -> list[list[int]]:
    """Tokens of the likeliest answer that beam search finds for each prompt.

    Scores are mean log-likelihoods per token, so that a longer answer is not worse for its
    length; padding may follow an answer's end.
    """
    with garbage_collector_off():
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class StopText(StoppingCriteria):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
        ) -> torch.BoolTensor:
            ended = [stop in tokenizer.decode(row) for row in input_ids.tolist()]
            return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]

    # A configuration of our own: the model's may hold sampling settings of its publisher.
    settings = GenerationConfig(
        num_beams=sampling.num_beams,
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    with _one_token_at_a_time(model):
        tokens_BT = model.language_model.generate(  # type: ignore[operator]
            inputs_embeds=context.embeds_BTD,
            attention_mask=context.attention_BT.long(),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([StopText()] if stop else []),
        )
    sequences: list[list[int]] = tokens_BT.tolist()
    return sequences


@contextlib.contextmanager
def _one_token_at_a_time(model: MiniGPT4) -> Iterator[None]:
    """The model's numeric type, and no compiler: a growing cache has it compile again and again.

    It gives up on a layer after eight versions, and then training may find none for itself.
    """
    with autocast(model.device, model.dtype), torch.compiler.set_stance("force_eager"):
        yield
