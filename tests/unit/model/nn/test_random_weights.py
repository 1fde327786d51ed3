"""Models for measuring: right in every shape, without a file."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.nn.random_weights import random_model

TINY = Architecture(28, 14, 32, 2, 2, 4.0, True, 32, 2, 2, 64, 4)
LLM = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains(precision: str) -> None:
    model = random_model(TINY, LLM, precision=precision)
    ids = torch.randint(5, 128, (2, 9))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 1:5] = True
    labels = torch.where(torch.arange(9) > 5, ids, -100)
    loss = model.answer_loss(torch.randn(2, 3, 28, 28), ids, mask, labels)
    loss.backward()
    assert loss.isfinite() and model.llama_proj.weight.grad.any()
    assert {p.dtype for p in model.language_model.parameters()} == {model.dtype}
    assert model.connector.query_tokens.any()


def test_widths_must_agree() -> None:
    with pytest.raises(WeightsError, match="width of 32, not 64"):
        random_model(TINY.with_llm_dim(32), LLM)
