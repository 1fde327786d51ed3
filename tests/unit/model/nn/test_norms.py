"""Fused RMS norms compute what transformers' own compute."""

from __future__ import annotations

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mgpt4_hpc.model.nn.norms import fuse_norms


def test_outputs_and_gradients_are_those_of_the_module() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    hidden_BTD = torch.randn(2, 3, 16, requires_grad=True)
    expected = norm(hidden_BTD)
    (gradient,) = torch.autograd.grad(expected.square().sum(), hidden_BTD)
    assert fuse_norms(torch.nn.ModuleList([norm, torch.nn.LayerNorm(16)])) == 1
    fused = norm(hidden_BTD)
    (fused_gradient,) = torch.autograd.grad(fused.square().sum(), hidden_BTD)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(fused_gradient, gradient)
    assert norm.forward.__func__ is not LlamaRMSNorm.forward
