"""One optimizer step: the global mean, broken gradients, the fp16 scale. CPU, no towers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.distributed import Ranks, rendezvous, start_group
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.step import StepOptions, TrainStep
from tests.support.forked import in_processes
from tests.unit.train.fakes import FakeModel, make_batches

CPU = torch.device("cpu")
CONFIG = load_config("stage1-vicuna7b").config.train


def make_step(
    model: FakeModel, projector: nn.Module | None = None, world_size: int = 1, **kwargs: Any
) -> TrainStep:
    return TrainStep(
        model,
        projector or model.llama_proj,
        build_optimizer(model.llama_proj, CONFIG),
        lambda step: 0.01,
        StepOptions(world_size=world_size, **kwargs),
        device=CPU,
    )


def gradient(sizes: list[int], **kwargs: Any) -> Tensor:
    """The gradient of one step over twelve samples, sliced so."""
    model = FakeModel()
    batches = make_batches(sizes)
    make_step(model, **kwargs)(batches, 0, sum(batch.num_answer_tokens for batch in batches))
    assert model.llama_proj.weight.grad is not None
    return model.llama_proj.weight.grad.clone()


def expected(sizes: list[int]) -> Tensor:
    """The same by definition: the gradient of the mean over all answer tokens."""
    model = FakeModel()
    batches = make_batches(sizes)
    losses = [
        model.answer_loss(b.images_NCHW, b.input_ids_BT, b.image_mask_BT, b.labels_BT)
        for b in batches
    ]
    (sum(losses) / sum(b.num_answer_tokens for b in batches)).backward()
    assert model.llama_proj.weight.grad is not None
    return model.llama_proj.weight.grad


@pytest.mark.parametrize("sizes", [[12], [6, 6], [1, 11], [1] * 12, [5, 0, 7]])
def test_the_gradient_is_that_of_the_global_mean_however_it_is_sliced(sizes: list[int]) -> None:
    torch.testing.assert_close(gradient(sizes), expected([12]), rtol=1e-5, atol=1e-7)


def test_rank_mean_adds_up_the_means_of_the_micro_batches_as_the_original() -> None:
    model = FakeModel()
    batches = make_batches([2, 10])
    means = [
        model.answer_loss(b.images_NCHW, b.input_ids_BT, b.image_mask_BT, b.labels_BT)
        / b.num_answer_tokens
        for b in batches
    ]
    sum(means).backward()
    found = gradient([2, 10], loss_reduction="rank_mean")
    torch.testing.assert_close(found, model.llama_proj.weight.grad, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, expected([12]), rtol=0.05)


def test_the_loss_that_is_reported_is_a_sum_with_its_count() -> None:
    model = FakeModel()
    batches = make_batches([4, 8])
    result = make_step(model)(batches, 0, 1000)
    assert result.num_tokens == sum(batch.num_answer_tokens for batch in batches)
    fresh = FakeModel()
    losses = [
        fresh.answer_loss(b.images_NCHW, b.input_ids_BT, b.image_mask_BT, b.labels_BT)
        for b in batches
    ]
    assert float(result.loss_sum) == pytest.approx(float(sum(losses).detach()), rel=1e-6)


# -- several ranks -----------------------------------------------------------------------------


def on_ranks(slices: list[list[int]], **kwargs: Any) -> list[tuple[Tensor, Tensor]]:
    """Weight and gradient norm on each rank after one step; each slice is one rank's."""
    token = f"step-{os.getpid()}-{time.time_ns()}"
    sizes = [size for mine in slices for size in mine]

    def rank_process(rank: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            torch.set_num_threads(1)
            ranks = Ranks(rank, rank, len(slices), len(slices))
            start_group(ranks, CPU, rendezvous(ranks, "127.0.0.1", token, timeout_s=20))
            model = FakeModel()
            projector = wrap_projector(model.llama_proj, CPU, len(slices))
            batches = make_batches(sizes)
            begin = sum(len(mine) for mine in slices[:rank])
            mine = batches[begin : begin + len(slices[rank])]
            tokens = int(ranks.sum_on_cpu([sum(b.num_answer_tokens for b in mine)])[0])
            step = make_step(model, projector, len(slices), **kwargs)
            result = step(mine, 0, tokens)
            ranks.barrier()
            return model.llama_proj.weight.detach().clone(), result.grad_norm.clone()

        return run

    return in_processes([rank_process(rank) for rank in range(len(slices))])


def test_two_ranks_make_the_step_of_one() -> None:
    alone = FakeModel()
    batches = make_batches([12])
    norm = make_step(alone)(batches, 0, batches[0].num_answer_tokens).grad_norm
    first, second = on_ranks([[5], [3, 4]])
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], alone.llama_proj.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[1], norm, rtol=1e-5, atol=1e-7)


def test_a_rank_whose_samples_have_no_answer_takes_part() -> None:
    alone = FakeModel()
    batches = make_batches([12])
    make_step(alone)(batches, 0, batches[0].num_answer_tokens)
    first, second = on_ranks([[12], [0]])
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], alone.llama_proj.weight.detach(), rtol=1e-5, atol=1e-6)


# -- what is broken ----------------------------------------------------------------------------


class Broken(FakeModel):
    """Loses its mind at certain calls."""

    def __init__(self, bad_calls: set[int], how: float = float("nan")) -> None:
        super().__init__()
        self.bad_calls, self.how, self.calls = bad_calls, how, 0

    def answer_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        loss = super().answer_loss(*args, **kwargs)
        return loss * self.how if self.calls in self.bad_calls else loss


@pytest.mark.parametrize("how", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_broken_step_changes_nothing_and_is_counted(how: float, max_grad_norm: float) -> None:
    model = Broken({2}, how)
    step = make_step(model, max_grad_norm=max_grad_norm)
    good = make_batches([12])
    step(good, 0, 40)
    before = [p.clone() for p in model.llama_proj.parameters()]
    state = [t.clone() for s in step.optimizer.state.values() for t in s.values()]
    result = step(good, 1, 40)
    assert not torch.isfinite(result.grad_norm)
    assert all(map(torch.equal, before, model.llama_proj.parameters()))
    after = [t for s in step.optimizer.state.values() for t in s.values()]
    assert all(map(torch.equal, state, after)), "moments and step count stay, too"
    assert (float(step.nonfinite_steps), float(step.overflow_steps)) == (1, 0)
    step(good, 2, 40)
    assert not torch.equal(before[0], model.llama_proj.weight)
    assert float(step.nonfinite_steps) == 1


def test_one_broken_micro_batch_is_enough() -> None:
    model = Broken({1})
    step = make_step(model)
    before = model.llama_proj.weight.clone()
    step(make_batches([4, 4, 4]), 0, 40)
    assert torch.equal(before, model.llama_proj.weight.detach())
    assert float(step.nonfinite_steps) == 1


def test_an_overflow_halves_the_fp16_scale_and_says_nothing_about_the_training() -> None:
    model = Broken({1, 3}, float("inf"))
    step = make_step(model, fp16=True)
    good = make_batches([12])
    scales = []
    for number in range(3):
        step(good, number, 40)
        scales.append(float(step.loss_scale))
    assert scales == [2.0**15, 2.0**15, 2.0**14]
    assert (float(step.nonfinite_steps), float(step.overflow_steps)) == (0, 2)


def test_a_nan_that_no_scale_cures_is_counted_as_broken() -> None:
    model = Broken(set(range(100)))
    step = make_step(model, fp16=True)
    for number in range(18):
        step(make_batches([2]), number, 8)
    assert (float(step.nonfinite_steps), float(step.overflow_steps)) == (2, 16)


def test_the_fp16_scale_grows_back_and_cancels_out() -> None:
    plain, scaled = FakeModel(), FakeModel()
    one, other = make_step(plain), make_step(scaled, fp16=True)
    other.growth_tracker.fill_(1999)
    good = make_batches([12])
    first, second = one(good, 0, 40), other(good, 0, 40)
    torch.testing.assert_close(first.grad_norm, second.grad_norm)
    torch.testing.assert_close(plain.llama_proj.weight, scaled.llama_proj.weight)
    assert float(other.loss_scale) == 2.0**17


def test_gradients_are_clipped_to_the_norm_and_the_norm_told_is_that_before() -> None:
    free, clipped = FakeModel(), FakeModel()
    good = make_batches([12])
    norm = make_step(free)(good, 0, 4).grad_norm
    result = make_step(clipped, max_grad_norm=0.1)(good, 0, 4)
    assert float(norm) > 1 and float(result.grad_norm) == float(norm)
    grads = [p.grad for p in clipped.llama_proj.parameters()]
    assert float(torch.nn.utils.get_total_norm(grads)) == pytest.approx(0.1, rel=1e-3)


def test_the_scale_and_the_counts_survive_a_requeue() -> None:
    step = make_step(Broken({1}, float("inf")), fp16=True)
    step(make_batches([2]), 0, 8)
    again = make_step(FakeModel(), fp16=True)
    again.load_scaler_tensors({name: t.clone() for name, t in step.scaler_tensors().items()})
    for name, tensor in step.scaler_tensors().items():
        assert torch.equal(tensor, again.scaler_tensors()[name]), name
    untouched = make_step(FakeModel(), fp16=True)
    untouched.load_scaler_tensors({})
    assert float(untouched.loss_scale) == 2.0**16
