"""Tests of ``model/nn/loss.py``."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.model.nn.loss import answer_loss_sum


def test_chunked_loss_equals_the_whole() -> None:
    torch.manual_seed(0)
    output_layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(60, 8, requires_grad=True)
    labels = torch.randint(0, 50, (60,))
    whole = torch.nn.functional.cross_entropy(output_layer(hidden), labels, reduction="sum")
    (wanted,) = torch.autograd.grad(3 * whole, hidden)
    for chunk in (7, 60, 1000):
        ours = answer_loss_sum(hidden, labels, output_layer, chunk_tokens=chunk)
        torch.testing.assert_close(ours, whole)
        torch.testing.assert_close(torch.autograd.grad(3 * ours, hidden)[0], wanted)
    with torch.no_grad():
        torch.testing.assert_close(answer_loss_sum(hidden, labels, output_layer), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_in_half_precision_is_as_good_as_autograd_s(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact_layer = torch.nn.Linear(16, 4000, bias=True).requires_grad_(False)
    exact = torch.randn(30, 16, requires_grad=True)
    labels = torch.randint(0, 4000, (30,))
    loss = torch.nn.functional.cross_entropy(exact_layer(exact), labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, exact)
    layer = torch.nn.Linear(16, 4000, bias=True).requires_grad_(False)
    layer.load_state_dict(exact_layer.state_dict())
    layer = layer.to(dtype)
    hidden = exact.detach().to(dtype).requires_grad_()
    ours = answer_loss_sum(hidden, labels, layer, chunk_tokens=8)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, loss, rtol=2e-3, atol=0)
    (gradient,) = torch.autograd.grad(ours, hidden)
    assert gradient.dtype == dtype
    assert (gradient.float() - wanted).norm() / wanted.norm() < 2e-2
