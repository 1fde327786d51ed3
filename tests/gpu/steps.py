"""A small model, its batches and a real training step on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.data.batching.batch import Batch, collate
from mgpt4_hpc.data.batching.text import NO_LABEL, TokenSequence
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.random_weights import random_model
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.step import StepOptions, TrainStep

ARCHITECTURE = Architecture(
    image_size=56, patch_size=14, vision_width=64, vision_depth=2, vision_heads=4,
    vision_mlp_ratio=4.0, qformer=True, qformer_width=64, qformer_layers=2, qformer_heads=4,
    qformer_mlp_width=128, num_query_tokens=8,
)  # fmt: skip

LLM = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def make_model(precision: str = "bf16", **options) -> MiniGPT4:
    torch.manual_seed(0)
    return random_model(ARCHITECTURE, LLM, precision=precision, device="cuda", **options)


def make_batch(number: int, size: int = 6, longest: int = 30) -> Batch:
    """Pinned, with answers of different lengths."""
    rng = np.random.default_rng(number)
    side, slots = ARCHITECTURE.image_size, ARCHITECTURE.num_image_tokens
    sequences = []
    for _ in range(size):
        answer = int(rng.integers(longest // 10, longest))
        ids = rng.integers(3, LLM["vocab_size"], 1 + slots + answer)
        mask = np.zeros(len(ids), dtype=np.bool_)
        mask[1 : 1 + slots] = True
        labels = np.full(len(ids), NO_LABEL, dtype=np.int64)
        labels[-answer:] = ids[-answer:]
        sequences.append(TokenSequence(ids, mask, labels, num_images=1))
    images = rng.integers(0, 256, (size, 3, side, side), dtype=np.uint8)
    names = [str(index) for index in range(size)]
    return collate(images, sequences, 0, keys=names, positions=range(size)).pin_memory()


def make_step(model: MiniGPT4, **options) -> TrainStep:
    config = TrainConfig(global_batch_size=6, micro_batch_size=6, max_steps=100, lr=1e-3)
    return TrainStep(
        model,
        model.llama_proj,
        build_optimizer(model.llama_proj, config),
        WarmupCosine.from_config(config),
        StepOptions(**options),
        device=model.device,
    )


def run(step: TrainStep, batch: Batch, number: int):
    return step([batch], number, batch.num_answer_tokens)


@contextmanager
def deterministic() -> Iterator[None]:
    """As a run has it by default."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
