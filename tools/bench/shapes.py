"""Sizes of the models that are measured, and the batches that the original trains them with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER, Architecture


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        architecture: the vision side.
        llm: values of the language model's config.json.
        batch_size: samples per step, by stage.
    """

    architecture: Architecture
    llm: Mapping[str, Any]
    batch_size: Mapping[int, int]


def _llama(width: int, mlp: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


_ORIGINAL_BATCH = {1: 64, 2: 12}
"""batch_size in the original's train_configs, per GPU."""

_SMALL = Architecture(
    image_size=224, patch_size=14, vision_width=384, vision_depth=6, vision_heads=6,
    vision_mlp_ratio=4.0, qformer=True, qformer_width=384, qformer_layers=6, qformer_heads=6,
    qformer_mlp_width=1536, num_query_tokens=32,
)  # fmt: skip

_TINY = Architecture(
    image_size=28, patch_size=14, vision_width=32, vision_depth=2, vision_heads=2,
    vision_mlp_ratio=4.0, qformer=True, qformer_width=32, qformer_layers=2, qformer_heads=2,
    qformer_mlp_width=64, num_query_tokens=4,
)  # fmt: skip

_TINY_PATCHES = Architecture(
    image_size=56, patch_size=14, vision_width=32, vision_depth=2, vision_heads=2, qformer=False
)

SHAPES: dict[str, Shape] = {
    "vicuna7b": Shape(EVA_G_QFORMER, _llama(4096, 11008, 32, 32, 32001), _ORIGINAL_BATCH),
    "vicuna13b": Shape(EVA_G_QFORMER, _llama(5120, 13824, 40, 40, 32001), _ORIGINAL_BATCH),
    "llama2-7b": Shape(EVA_G_PATCHES, _llama(4096, 11008, 32, 32, 32000), _ORIGINAL_BATCH),
    # For CPUs: LLaMA's MLP is 8/3 of its width, rounded up to a multiple of 32.
    "cpu40m": Shape(_SMALL, _llama(512, 1376, 8, 8, 32000), {1: 16, 2: 8}),
    "tiny": Shape(_TINY, _llama(64, 96, 2, 4, 512), {1: 4, 2: 3}),
    "tiny-patches": Shape(_TINY_PATCHES, _llama(64, 96, 2, 4, 512), {1: 4, 2: 3}),
}
