"""The real optimizer step: reduced precision follows float32, broken steps change nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mgpt4_hpc.train.step import TrainStep


def weight_of(step: TrainStep) -> torch.Tensor:
    return step.projector.weight.detach().clone()


def take(step: TrainStep, batches: list, number: int = 0):
    return step(batches, number, sum(batch.num_answer_tokens for batch in batches))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_half_precision_trains_as_float32_does(trainable, stage: str, precision: str) -> None:
    step, batch = trainable.step(stage, precision), trainable.batch(stage)
    for number, (_, theirs) in enumerate(trainable.expected[f"{stage}.curve"]):
        result = take(step, [batch], number)
        assert result.loss_sum.item() / result.num_tokens == pytest.approx(theirs, rel=0.02)
        assert math.isfinite(result.grad_norm.item())
    assert step.nonfinite_steps == step.overflow_steps == 0
    assert step.loss_scale == (2.0**16 if precision == "fp16" else 1.0)
    assert step.projector.weight.dtype == torch.float32


def test_the_loss_scale_is_divided_out(vicuna) -> None:
    batch = vicuna.batch("stage1")
    norms = []
    for scale in (1.0, 2.0**10, 2.0**16):
        step = vicuna.step("stage1", "fp16")
        step.loss_scale.fill_(scale)
        norms.append(take(step, [batch]).grad_norm.item())
    assert norms[1] == pytest.approx(norms[2], rel=1e-2)
    assert norms[0] == pytest.approx(norms[2], rel=5e-2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_step_changes_nothing_but_its_count(vicuna, broken: float) -> None:
    step, batch = vicuna.step("stage1"), vicuna.batch("stage1")
    take(step, [batch])
    before = weight_of(step)
    moments = {k: v.clone() for k, v in step.optimizer.state[step.projector.weight].items()}
    # The sum is broken while its gradient is as good as ever: only the loss tells.
    step.model.add_to_loss = broken
    result = take(step, [batch], 1)
    assert not math.isfinite(result.loss_sum.item())
    assert step.nonfinite_steps == 1
    assert torch.equal(weight_of(step), before)
    for name, value in step.optimizer.state[step.projector.weight].items():
        assert torch.equal(value, moments[name]), name
    step.model.add_to_loss = 0.0
    take(step, [batch], 2)
    assert step.nonfinite_steps == 1 and not torch.equal(weight_of(step), before)


def test_a_broken_gradient_is_skipped_too(vicuna) -> None:
    step, batch = vicuna.step("stage1"), vicuna.batch("stage1")
    hook = step.projector.weight.register_hook(lambda grad: grad * math.nan)
    before = weight_of(step)
    result = take(step, [batch])
    assert math.isfinite(result.loss_sum.item()) and step.nonfinite_steps == 1
    assert torch.equal(weight_of(step), before)
    hook.remove()


def test_one_broken_micro_batch_breaks_the_step(vicuna) -> None:
    step, batch = vicuna.step("stage1"), vicuna.batch("stage1")
    calls = iter([0.0, math.inf, 0.0])
    answer_loss = step.model.answer_loss
    step.model.answer_loss = lambda *a, **k: answer_loss(*a, **k) + next(calls)
    take(step, [batch] * 3)
    assert step.nonfinite_steps == 1


def test_searching_the_loss_scale_is_no_fault(vicuna) -> None:
    step, batch = vicuna.step("stage1", "fp16"), vicuna.batch("stage1")
    step.loss_scale.fill_(2.0**60)
    before = weight_of(step)
    take(step, [batch])
    assert (step.overflow_steps, step.nonfinite_steps) == (1, 0)
    assert step.loss_scale == 2.0**59 and torch.equal(weight_of(step), before)
    step.loss_scale.fill_(1.0)
    step.model.add_to_loss = math.nan
    take(step, [batch], 1)
    assert (step.overflow_steps, step.nonfinite_steps) == (1, 1), "no scale helps any more"


def test_counts_and_loss_scale_survive_a_resume(vicuna) -> None:
    step, batch = vicuna.step("stage1", "fp16"), vicuna.batch("stage1")
    step.model.add_to_loss = math.nan
    for number in range(20):
        take(step, [batch], number)
    assert (step.overflow_steps, step.nonfinite_steps) == (16, 4)
    saved = {name: tensor.clone() for name, tensor in step.scaler_tensors().items()}
    resumed = vicuna.step("stage1", "fp16")
    resumed.load_scaler_tensors(saved)
    assert {k: v.item() for k, v in resumed.scaler_tensors().items()} == {
        k: v.item() for k, v in saved.items()
    }
    assert resumed.loss_scale == step.loss_scale == 2.0**-4


@pytest.mark.parametrize(("reduction", "divided"), [("global_tokens", True), ("rank_mean", False)])
def test_loss_reduction(vicuna, reduction: str, divided: bool) -> None:
    """All answer tokens alike, or the original's: each batch's own mean, accumulation undivided."""
    halves = [vicuna.batch("stage1", slice(0, 1)), vicuna.batch("stage1", slice(1, 2))]
    counts = [half.num_answer_tokens for half in halves]
    assert counts[0] != counts[1]
    alone = []
    for half in halves:  # the gradient of each half's own mean
        step = vicuna.step("stage1", loss_reduction="rank_mean")
        take(step, [half])
        alone.append(step.projector.bias.grad.clone())
    step = vicuna.step("stage1", loss_reduction=reduction)
    take(step, halves)
    if divided:
        total = sum(counts)
        wanted = (alone[0] * counts[0] + alone[1] * counts[1]) / total
    else:
        wanted = alone[0] + alone[1]
    torch.testing.assert_close(step.projector.bias.grad, wanted, rtol=1e-4, atol=1e-7)
