"""Our model computes what the original computed, on both reference folders, in float32."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.model.generation.generate import generate_from_features

STAGES = ("stage1", "stage2")


@pytest.mark.parametrize("stage", STAGES)
def test_image_embeddings(reference, stage: str) -> None:
    features = reference.model.encode_images(reference.tensors[f"{stage}.images"])
    ours = reference.model.project(features)
    torch.testing.assert_close(
        ours, reference.tensors[f"{stage}.image_embeds"], atol=5e-6, rtol=0.0
    )


@pytest.mark.parametrize("stage", STAGES)
def test_answer_targets(reference, stage: str) -> None:
    labels = reference.batch(stage)["labels_BT"]
    ours = [[token for token in row if token != -100] for row in labels.tolist()]
    targets = reference.tensors[f"{stage}.regress_targets"].tolist()
    assert ours == [[token for token in row if token != -100] for row in targets]


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients(reference, stage: str) -> None:
    batch = reference.batch(stage)
    loss = reference.model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()
    loss.backward()
    assert loss.item() == pytest.approx(reference.expected[f"{stage}.loss"], abs=1e-5)
    for name, parameter in reference.model.llama_proj.named_parameters():
        theirs = reference.tensors[f"{stage}.grad.llama_proj.{name}"]
        assert (parameter.grad - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_greedy_tokens_of_a_batch(reference) -> None:
    trained = {
        name: reference.tensors[f"stage2.trained.llama_proj.{name}"] for name in ("weight", "bias")
    }
    reference.model.llama_proj.load_state_dict(trained)
    features = reference.model.encode_images(reference.tensors["stage2.images"])
    answers = generate_from_features(
        reference.model,
        reference.tokenizer,
        features,
        reference.expected["stage2.prompts"],
        max_new_tokens=24,
    )
    # The original's generate() puts a BOS in front of what it returns.
    assert [[1, *answer.token_ids] for answer in answers] == reference.expected[
        "stage2.greedy_tokens"
    ]
