"""What trains, what stays frozen, and in which types."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model


def mean_loss(model, batch) -> torch.Tensor:
    return model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()


def test_only_the_projector_learns(reference) -> None:
    reference.model.answer_loss(**reference.batch("stage2")).backward()
    learning = {n for n, p in reference.model.named_parameters() if p.requires_grad}
    touched = {n for n, p in reference.model.named_parameters() if p.grad is not None}
    assert learning == touched == {"llama_proj.weight", "llama_proj.bias"}


def test_train_mode_leaves_the_towers_in_eval(vicuna) -> None:
    model = vicuna.model.train()
    assert model.training and model.llama_proj.training
    for tower in (model.vision, model.connector, model.language_model):
        assert not any(module.training for module in tower.modules())
    assert not model.eval().llama_proj.training


def test_a_row_may_have_several_images_or_none(reference) -> None:
    """Row 0 has two images, row 1 none, row 2 one: the loss is the sum of the rows' own."""
    model = reference.model
    slots, images = model.architecture.num_image_tokens, reference.tensors["stage2.images"][:3]
    rows = [[9, None, 11, None, 12, 13], [9, 10, 11], [None, 14, 15]]
    told = []
    for row in rows:
        mask = [slot for token in row for slot in ([True] * slots if token is None else [False])]
        ids = [i for token in row for i in ([0] * slots if token is None else [token])]
        labels = [-100] * (len(ids) - 1) + ids[-1:]
        told.append((ids, mask, labels))

    def loss_of(chosen, pixels_NCHW) -> torch.Tensor:
        longest = max(len(ids) for ids, _, _ in chosen)
        table = [torch.full((len(chosen), longest), fill) for fill in (0, False, -100)]
        for number, row in enumerate(chosen):
            for tensor, values in zip(table, row, strict=True):
                tensor[number, : len(values)] = torch.tensor(values)
        return model.answer_loss(pixels_NCHW, *table)

    together = loss_of(told, images)
    alone = [loss_of(told[:1], images[:2]), loss_of(told[1:2], images[:0]),
             loss_of(told[2:], images[2:])]  # fmt: skip
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, loss_of(told, images[[1, 0, 2]])), "their order matters"
    model.zero_grad()
    alone[1].backward()
    for parameter in model.llama_proj.parameters():  # DDP waits for a gradient of each
        assert parameter.grad is not None and not parameter.grad.any()


def test_no_graph_in_the_towers(reference) -> None:
    features = reference.model.encode_images(reference.tensors["stage1.images"])
    assert not features.requires_grad and not features.is_inference()


def test_gradients_reach_a_wrapped_projector(vicuna) -> None:
    class Wrapped(torch.nn.Module):  # stands for DDP: another module, the same parameters
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.module = vicuna.model.llama_proj

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.module(features)

    wrapped, batch = Wrapped(), vicuna.batch("stage2")
    mean_loss(vicuna.model, batch).backward()
    straight = vicuna.model.llama_proj.weight.grad.clone()
    vicuna.model.zero_grad()
    vicuna.model.answer_loss(**batch, projector=wrapped).div(
        (batch["labels_BT"] != -100).sum()
    ).backward()
    assert wrapped.calls == 1
    assert torch.equal(vicuna.model.llama_proj.weight.grad, straight)


def test_eager_attention_agrees(reference) -> None:
    eager = build_model(reference.bundle, ModelOptions(attention="eager"))
    batch = reference.batch("stage2")
    assert mean_loss(eager, batch).item() == pytest.approx(
        reference.expected["stage2.loss"], abs=1e-5
    )


def test_loss_without_any_label_is_zero(vicuna) -> None:
    batch = vicuna.batch("stage1")
    batch["labels_BT"].fill_(-100)
    loss = vicuna.model.answer_loss(**batch)
    loss.backward()
    assert loss.item() == 0.0 and not vicuna.model.llama_proj.weight.grad.any()
