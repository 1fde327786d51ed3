"""AdamW's state as named tensors: out and in again, with nothing lost and nothing mixed up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import CheckpointError
from mgpt4_hpc.train.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_lr,
)

CONFIG = load_config("stage1-vicuna7b").config.train


def trained(module: nn.Linear, steps: int, optimizer: torch.optim.AdamW | None = None):
    optimizer = optimizer or build_optimizer(module, CONFIG)
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((2, 4), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()
    return optimizer


def test_matrices_decay_and_vectors_do_not() -> None:
    optimizer = build_optimizer(nn.Linear(4, 3), CONFIG)
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in optimizer.param_groups] == [
        (0.05, [2]),
        (0.0, [1]),
    ]


def test_a_frozen_parameter_has_no_state() -> None:
    module = nn.Linear(4, 3)
    module.bias.requires_grad = False
    tensors = optimizer_tensors(trained(module, 1), module)
    assert sorted(tensors) == ["exp_avg.weight", "exp_avg_sq.weight", "step.weight"]
    load_optimizer_tensors(build_optimizer(module, CONFIG), module, tensors)


def test_going_on_from_stored_state_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 3)
    optimizer = trained(one, 3)
    two = nn.Linear(4, 3)
    two.load_state_dict(one.state_dict())
    stored = {name: t.clone() for name, t in optimizer_tensors(optimizer, one).items()}
    resumed = build_optimizer(two, CONFIG)
    load_optimizer_tensors(resumed, two, stored)
    trained(one, 3, optimizer)
    trained(two, 3, resumed)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
    assert float(stored["step.weight"]) == 3, "what was stored is not changed by going on"


def test_before_the_first_step_there_is_none() -> None:
    module = nn.Linear(4, 3)
    assert optimizer_tensors(build_optimizer(module, CONFIG), module) == {}


def test_a_state_with_a_hole_is_refused() -> None:
    module = nn.Linear(4, 3)
    tensors = optimizer_tensors(trained(module, 1), module)
    del tensors["exp_avg_sq.bias"]
    with pytest.raises(CheckpointError, match=r"lacks exp_avg_sq\.bias"):
        load_optimizer_tensors(build_optimizer(module, CONFIG), module, tensors)


def test_a_state_of_another_model_is_refused() -> None:
    module = nn.Linear(4, 3)
    tensors = optimizer_tensors(trained(module, 1), module)
    other = nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match=r"shape \(3, 4\), the model needs \(2, 4\)"):
        load_optimizer_tensors(build_optimizer(other, CONFIG), other, tensors)


def test_every_group_gets_the_learning_rate() -> None:
    optimizer = build_optimizer(nn.Linear(4, 3), CONFIG)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
