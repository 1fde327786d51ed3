"""How much GPU memory a training step takes, from sizes alone.

An estimate to plan by, within about a fifth: weights are counted exactly, activations from what
autograd keeps of a LLaMA layer with frozen weights.

Letters in comments: D language width, F its MLP width, T tokens of the micro-batch (all rows).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.model.architecture import LOGITS_AT_ONCE, Architecture
from mgpt4_hpc.model.tower_shapes import Shapes, connector_shapes, projector_shapes, vision_shapes

GIB = 2**30

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

_OVERHEAD_GIB = 1.5
"""CUDA context, cuBLAS workspaces, NCCL buffers and the allocator's fragments."""


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB on one GPU while one micro-batch is trained on.

    Attributes:
        weights: towers and language model.
        trained: projector with gradient and AdamW's two moments, all float32.
        activations: kept for the backward pass, and the largest transient beside them.
        overhead: what the CUDA libraries take.
    """

    weights: float
    trained: float
    activations: float
    overhead: float = _OVERHEAD_GIB

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.weights + self.trained + self.activations + self.overhead


def count(shapes: Shapes) -> int:
    """Numbers in a table of tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class LlmSizes:
    """A language model's ``config.json``, and how many numbers it has."""

    config: Mapping[str, Any]
    num_parameters: int


def estimate_memory(
    arch: Architecture,
    llm: LlmSizes,
    *,
    micro_batch_size: int,
    text_tokens: int,
    precision: str = "bf16",
    activation_checkpointing: float = 0.0,
    sharded_over: int = 1,
) -> MemoryEstimate:
    """Memory of one rank.

    Args:
        arch: sizes, with ``llm_dim``.
        llm: the language model.
        micro_batch_size: rows per forward.
        text_tokens: tokens per row beside the image's: begin, prompt and answer.
        precision: as in ``build_model``.
        activation_checkpointing: part of the layers that keep their input alone, beside one
            layer's inside at a time.
        sharded_over: ranks over which the language model's layers are spread.
    """
    assert arch.llm_dim is not None
    llm_config, llm_parameters = llm.config, llm.num_parameters
    size = _BYTES[precision]
    towers = count(vision_shapes(arch)) + count(connector_shapes(arch))
    tokens = micro_batch_size * (arch.num_image_tokens + text_tokens)
    per_layer = _layer_bytes_per_token(llm_config, arch.llm_dim, size)
    layers = int(llm_config.get("num_hidden_layers", 32))
    recomputed = math.ceil(activation_checkpointing * layers)
    kept = tokens * (layers - recomputed + bool(recomputed)) * per_layer
    kept += tokens * recomputed * arch.llm_dim * size
    # Logits of one chunk as they are, in float32, and their gradient.
    logits = LOGITS_AT_ONCE * int(llm_config.get("vocab_size", 32000)) * (size + 4 + 4)
    # The ViT keeps nothing; while it runs, its widest layer is held in and out.
    vision = (
        micro_batch_size
        * (arch.num_patches + 1)
        * (2 * arch.vision_mlp_width * size + 3 * arch.vision_width * 4)
    )
    if sharded_over > 1:
        llm_parameters = _held(llm_config, arch.llm_dim, llm_parameters, sharded_over)
    return MemoryEstimate(
        weights=(towers + llm_parameters) * size / GIB,
        trained=count(projector_shapes(arch, arch.llm_dim)) * 16 / GIB,
        activations=(kept + max(logits, vision)) / GIB,
    )


def _held(config: Mapping[str, Any], width: int, parameters: int, ranks: int) -> int:
    """Numbers of a sharded language model on one rank.

    Embeddings and output matrix are whole; of the layers a part, and two gathered: the one that
    computes and the next one.
    """
    tables = 1 if config.get("tie_word_embeddings") else 2
    whole = tables * int(config.get("vocab_size", 32000)) * width
    layers = parameters - whole
    gathered = 2 * layers // int(config.get("num_hidden_layers", 32))
    return whole + layers // ranks + gathered


def _layer_bytes_per_token(config: Mapping[str, Any], width: int, size: int) -> int:
    """What autograd keeps of one layer for one token.

    Frozen matrices keep no inputs. Two norms keep their input (D each); attention keeps query, key,
    value and output; the gated MLP its gate (twice, around the activation's product) and up
    projection, F each.
    """
    heads = int(config.get("num_attention_heads", 32))
    key_heads = int(config.get("num_key_value_heads") or heads)
    head_width = int(config.get("head_dim") or width // heads)
    attention = (2 * heads + 2 * key_heads) * head_width
    mlp = 3 * int(config.get("intermediate_size", 4 * width))
    return (2 * width + attention + mlp) * size
