"""Leaving out what cannot change the loss changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgpt4_hpc.model.nn.language import runs_packed, trunk
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
from mgpt4_hpc.model.nn.performance.packing import pack

X = -100


def test_what_is_kept() -> None:
    ids = torch.tensor([[1, 9, 9, 5, 6, 0], [1, 9, 9, 7, 8, 2], [1, 9, 9, 4, 0, 0]])
    mask = ids == 9
    labels = torch.tensor([[X, X, X, 5, 6, X], [X, X, X, X, 8, 2], [X, X, X, X, X, X]])
    packed = pack(ids, mask, labels)
    # The last learned token, padding and the row without an answer are gone.
    assert packed.token_ids_N.tolist() == [1, 9, 9, 5, 1, 9, 9, 7, 8]
    assert packed.positions_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert packed.starts_R1.tolist() == [0, 4, 9] and packed.starts_R1.dtype == torch.int32
    assert (packed.num_rows, packed.longest, packed.num_tokens) == (2, 5, 9)
    assert packed.padded_N.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert packed.slots_S.tolist() == [1, 2, 5, 6]
    assert packed.images_S.tolist() == [0, 1, 2, 3] and not packed.all_images
    assert packed.predicts_A.tolist() == [2, 3, 7, 8]
    assert packed.labels_A.tolist() == [5, 6, 8, 2]
    assert packed.lengths() == [4, 5]


def test_a_row_left_out_does_not_shift_the_images_of_the_others() -> None:
    ids = torch.tensor([[1, 9, 9, 5], [1, 9, 9, 6]])
    labels = torch.tensor([[X, X, X, X], [X, X, X, 6]])
    packed = pack(ids, ids == 9, labels)
    assert packed.images_S.tolist() == [2, 3]
    assert pack(ids, ids == 9, torch.where(ids > 4, ids, X)).all_images


def test_the_first_token_cannot_be_learned() -> None:
    ids = torch.tensor([[1, 2]])
    assert pack(ids, ids == 9, torch.tensor([[1, X]])).num_tokens == 0


def whole_loss(model, pixels_NCHW, input_ids_BT, image_mask_BT, labels_BT) -> torch.Tensor:
    """Padded, masked, logits everywhere: as one would first write it."""
    images = model.project(model.encode_images(pixels_NCHW))
    embeds = model.embed(input_ids_BT, image_mask_BT, images)
    hidden = trunk(model.language_model)(inputs_embeds=embeds, use_cache=False)[0]
    logits = model.language_model.get_output_embeddings()(hidden)
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), reduction="sum"
    )


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_loss_and_gradient_are_those_of_the_padded_batch(reference, attention, stage) -> None:
    batch = reference.batch(stage)
    batch["labels_BT"][1] = X  # a sample without an answer
    model = build_model(reference.bundle, ModelOptions(attention=attention))
    assert runs_packed(model.language_model) == (attention == "packed")
    loss = model.answer_loss(**batch)
    (gradient,) = torch.autograd.grad(loss, model.llama_proj.weight)
    plain = whole_loss(build_model(reference.bundle, ModelOptions(attention="sdpa")), **batch)
    torch.testing.assert_close(loss, plain)
    expected = build_model(reference.bundle, ModelOptions(attention="sdpa"))
    (wanted,) = torch.autograd.grad(whole_loss(expected, **batch), expected.llama_proj.weight)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_tokens_computed_are_tokens_needed(vicuna) -> None:
    """The guard of the speed-up: the language model sees no padding at all."""
    seen = []
    model = build_model(vicuna.bundle)
    trunk(model.language_model).layers[0].register_forward_pre_hook(
        lambda _m, args: seen.append(tuple(args[0].shape))
    )
    batch = vicuna.batch("stage2")
    model.answer_loss(**batch)
    needed = sum(int((row != X).nonzero().max()) for row in batch["labels_BT"])
    assert seen == [(1, needed, model.architecture.llm_dim)]
