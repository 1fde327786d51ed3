"""What a step takes of the GPU's memory, and that the estimate says so beforehand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mgpt4_hpc.model.architecture import EVA_G_QFORMER
from mgpt4_hpc.model.estimates.memory import GIB, LlmSizes, estimate_memory
from mgpt4_hpc.model.nn.performance.packing import pack
from mgpt4_hpc.model.nn.random_weights import random_model
from tests.gpu.steps import ARCHITECTURE, LLM, make_batch, make_step, run

SEVEN_B = {
    "model_type": "llama",
    "vocab_size": 32001,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def peak_gib(step, batch) -> float:
    run(step, batch, 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run(step, batch, 1)
    return torch.cuda.max_memory_allocated() / GIB


def seven_b_batch(size: int = 64):
    """Stage 1 with the longest answers."""
    batch = make_batch(0, 1)
    side, length = EVA_G_QFORMER.image_size, 1 + 32 + 32
    ids = torch.randint(3, 32000, (size, length))
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, 1:33] = True
    return dataclasses.replace(
        batch,
        images_NCHW=torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8),
        input_ids_BT=ids,
        image_mask_BT=mask,
        labels_BT=torch.where(torch.arange(length) > 32, ids, -100),
        attention_mask_BT=torch.ones_like(mask),
        num_answer_tokens=32 * size,
    ).pin_memory()


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
def test_seven_b_at_batch_64_fits_in_40_gib(cuda, recomputed) -> None:
    if torch.cuda.mem_get_info()[0] < 45 * GIB:
        pytest.skip("needs 45 GiB to find out")
    model = random_model(
        EVA_G_QFORMER,
        SEVEN_B,
        precision="bf16",
        device=cuda,
        activation_checkpointing=recomputed,
    )
    batch = seven_b_batch()
    peak = peak_gib(make_step(model), batch)
    packed = pack(batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT)
    estimate = estimate_memory(
        model.architecture,
        LlmSizes(SEVEN_B, sum(p.numel() for p in model.language_model.parameters())),
        micro_batch_size=64,
        text_tokens=packed.num_tokens // 64 - 32,
        activation_checkpointing=bool(recomputed),
    )
    del model
    print(f"peak {peak:.2f} GiB, estimate {estimate}")
    assert peak < 40
    # The CUDA context and the libraries' own memory are not the allocator's.
    assert estimate.total - estimate.overhead == pytest.approx(peak, rel=0.1)


def test_memory_does_not_grow_with_tokens_times_vocabulary(cuda) -> None:
    peaks = []
    for vocabulary in (1000, 64000):
        llm = LLM | {"vocab_size": vocabulary}
        model = random_model(ARCHITECTURE, llm, precision="bf16", device=cuda)
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
        peaks.append(peak_gib(make_step(model), make_batch(0, size=512)) - weights)
    # 512 samples predict about 8,000 tokens, whose float32 logits alone would take 2 GiB. A chunk's
    # logits take 1024 x 64000 x (4 + 4 + 2) bytes.
    assert peaks[1] - peaks[0] < 0.8
