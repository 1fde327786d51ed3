"""How the next token is chosen: the likeliest, a drawn one, or several followed side by side.

Shapes: B rows, T tokens generated so far, K vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.lazy import garbage_collector_off


@dataclass(frozen=True)
class Sampling:
    """How answers are generated.

    The original's demo draws with temperature 1, top-p 0.9 and a repetition penalty of 1.05.

    Attributes:
        max_new_tokens: limit per answer, its stop symbol included.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: draw only among the likeliest tokens that together have this probability.
        num_beams: beams followed side by side; 1 is none. Only at temperature 0.
        repetition_penalty: divides the logits of tokens that the answer has already (multiplies
            negative ones), after CTRL (arXiv 1909.05858); 1 is off. The prompt does not count.
        seed: of the draws.
    """

    max_new_tokens: int = 300
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        faults = []
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if not 0 <= self.temperature < float("inf"):
            faults.append(f"temperature is {self.temperature}; it must be 0 (likeliest) or more")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.num_beams < 1:
            faults.append(f"num_beams is {self.num_beams}; it must be 1 or more")
        if not 0 < self.repetition_penalty < float("inf"):
            faults.append(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")
        if self.num_beams > 1 and self.temperature > 0:
            faults.append(
                f"num_beams {self.num_beams} and temperature {self.temperature} exclude each "
                "other: beams follow the likeliest tokens, a temperature draws"
            )
        if faults:
            raise ConfigError("answers cannot be generated like this", faults=faults)


class Picker:
    """Chooses the next token of each row; the draws of a row depend on its own seed alone.

    Args:
        sampling: how.
        seeds: one per row.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        with garbage_collector_off():
            from transformers.generation.logits_process import (
                LogitsProcessorList,
                RepetitionPenaltyLogitsProcessor,
                TemperatureLogitsWarper,
                TopPLogitsWarper,
            )
        self._change = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._change.append(
                RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
            )
        self._generators: list[torch.Generator] = []
        if sampling.temperature > 0:
            if sampling.temperature != 1:
                self._change.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                self._change.append(TopPLogitsWarper(float(sampling.top_p)))
            # On the CPU: a GPU's generator gives other numbers, and one per row cannot be batched.
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits_BK: torch.Tensor, taken_BT: torch.Tensor) -> torch.Tensor:
        """Next token of each row (B), from float32 logits and the tokens taken before."""
        logits_BK = self._change(taken_BT, logits_BK)
        if not self._generators:
            return logits_BK.argmax(dim=-1)
        probabilities_BK = logits_BK.softmax(dim=-1).cpu()
        drawn = [
            torch.multinomial(row_K, 1, generator=generator)
            for row_K, generator in zip(probabilities_BK, self._generators, strict=True)
        ]
        return torch.cat(drawn).to(logits_BK.device)


def row_seed(seed: int, name: object) -> int:
    """Seed of one answer: a pure function of the run's seed and of what is answered about.

    So an answer does not change when others are generated beside it.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
