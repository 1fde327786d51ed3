"""Tests of ``model/estimates/flops.py``."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.subjects import tiny


@pytest.mark.parametrize("shape", ["tiny", "tiny-patches"])
@pytest.mark.parametrize("stage", [1, 2])
def test_flops_are_those_that_torch_counts(shape: str, stage: int) -> None:
    """The guard against slower steps: operations, which no busy machine can change."""
    from mgpt4_hpc.model.estimates.flops import step_flops
    from mgpt4_hpc.model.nn.performance.packing import pack
    from mgpt4_hpc.train.step import forward_loss

    # Padded, without skipping half of the scores: what the counter can see through.
    subject, (batch, _) = tiny(shape, stage, attention="eager")
    packed = pack(batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        forward_loss(subject.model, batch, torch.device("cpu")).backward()
    expected = step_flops(
        subject.model.architecture,
        subject.llm,
        num_images=len(batch),
        lengths=[packed.longest] * packed.num_rows,
        num_predicted=len(packed.predicts_A),
        causal=False,
    )
    # Of the first layer's keys and values nothing but the image part matters, yet all is computed.
    assert counter.get_total_flops() == pytest.approx(expected.needed, rel=1e-3)


def test_a_packed_step_computes_no_padding() -> None:
    from mgpt4_hpc.model.estimates.flops import step_flops
    from mgpt4_hpc.model.nn.performance.packing import pack

    subject, (batch, _) = tiny("tiny", 1)
    packed = pack(batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT)
    padded = step_flops(
        subject.model.architecture,
        subject.llm,
        num_images=len(batch),
        lengths=[batch.input_ids_BT.shape[1]] * len(batch),
        num_predicted=batch.labels_BT.numel(),
    )
    needed = step_flops(
        subject.model.architecture,
        subject.llm,
        num_images=len(batch),
        lengths=packed.lengths(),
        num_predicted=len(packed.predicts_A),
    )
    assert packed.num_tokens == sum(packed.lengths()) < batch.input_ids_BT.numel()
    assert needed.needed < 0.8 * padded.needed
