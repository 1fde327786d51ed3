"""Draws, beams and penalties: bounded, seeded per answer, refused where they make no sense."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.sampling import Picker, Sampling, row_seed

NONE = torch.zeros(1, 0, dtype=torch.long)


def draws(sampling: Sampling, logits: torch.Tensor, count: int = 200) -> set[int]:
    pick = Picker(sampling, [sampling.seed])
    return {int(pick(logits.clone(), NONE)) for _ in range(count)}


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert draws(Sampling(temperature=1, top_p=0.75), logits) == {0, 1}
    assert draws(Sampling(temperature=1, top_p=0.01), logits) == {0}
    assert draws(Sampling(temperature=1), logits) == {0, 1, 2, 3}
    assert draws(Sampling(temperature=0.05), logits) == {0}


def test_shares_follow_the_probabilities() -> None:
    pick = Picker(Sampling(temperature=2), [5])
    logits = torch.tensor([[0.81, 0.01]]).log()  # at temperature 2: 0.9 to 0.1
    count = sum(int(pick(logits.clone(), NONE)) for _ in range(2000))
    assert 150 < count < 250


def test_the_penalty_moves_both_signs_down() -> None:
    pick = Picker(Sampling(repetition_penalty=2), [0])
    taken = torch.tensor([[0, 2]])
    assert int(pick(torch.tensor([[3.0, 2.0, -1.0]]), taken)) == 1
    assert int(pick(torch.tensor([[-3.0, -1.8, -1.0]]), taken)) == 1


def test_a_row_draws_the_same_alone_and_beside_others() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    seeds = [row_seed(42, name) for name in ("a", "b", "c")]
    together = Picker(Sampling(temperature=1), seeds)
    alone = Picker(Sampling(temperature=1), seeds[1:2])
    for _ in range(20):
        taken = torch.zeros(3, 0, dtype=torch.long)
        assert int(together(logits.clone(), taken)[1]) == int(alone(logits[1:2].clone(), NONE))


def test_seeds_differ_by_run_and_name() -> None:
    assert len({row_seed(seed, name) for seed in (1, 2) for name in ("a", "b")}) == 4


def test_nonsense_is_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(
            max_new_tokens=0, temperature=-1, top_p=0, num_beams=0, repetition_penalty=float("nan")
        )
    assert len(caught.value.faults) == 5
    with pytest.raises(ConfigError, match="exclude each other"):
        Sampling(num_beams=3, temperature=1)
