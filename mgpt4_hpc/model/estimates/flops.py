"""Floating-point operations of a training step, counted from sizes.

A product of (m, k) and (k, n) counts 2 m k n. Softmax, norms and other small operations count
nothing, as in torch.utils.flop_counter, which tests compare with. Letters: V vision width, Q
Q-Former width, D language width, F its MLP width, P patches with the class token, I image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.model.architecture import Architecture


@dataclass(frozen=True)
class StepFlops:
    """One step's operations, by part.

    Attributes:
        vision: ViT, forward only.
        qformer: Q-Former, forward only; 0 without one.
        projector: forward, and the gradient of its weights.
        language: the language model's layers, forward and the gradient of their inputs.
        head: logits of answer tokens and the gradient of their inputs.
        recomputed: layers computed a second time in the backward pass.
    """

    vision: float
    qformer: float
    projector: float
    language: float
    head: float
    recomputed: float = 0.0

    @property
    def needed(self) -> float:
        """What the task takes when nothing is padded, masked out or computed twice."""
        return self.vision + self.qformer + self.projector + self.language + self.head

    @property
    def executed(self) -> float:
        """With what is computed again."""
        return self.needed + self.recomputed


_ATTENTION_BACKWARD = 2.0
"""Attention's backward pass in units of its forward pass, as calculus needs; flash kernels, which
keep no scores, execute 2.5."""


def step_flops(
    arch: Architecture,
    llm: Mapping[str, Any],
    *,
    num_images: int,
    lengths: Sequence[int],
    num_predicted: int,
    causal: bool = True,
    recomputed_part: float = 0.0,
) -> StepFlops:
    """Operations of one optimizer step on one rank.

    Args:
        arch: sizes of the vision side.
        llm: values of the language model's config.json.
        num_images: images encoded.
        lengths: tokens of each sequence that the language model computes.
        num_predicted: answer tokens.
        causal: count half of the language model's attention, as kernels that skip it compute.
        recomputed_part: of the language model's layers.
    """
    products, attention = _language_layer(llm, lengths, causal)
    layers = int(llm["num_hidden_layers"])
    head = 2.0 * num_predicted * llm["hidden_size"] * llm["vocab_size"]
    projector = 2.0 * num_images * arch.num_image_tokens * arch.projector_in * llm["hidden_size"]
    return StepFlops(
        vision=num_images * _vision(arch),
        qformer=num_images * _qformer(arch) if arch.qformer else 0.0,
        projector=2.0 * projector,
        language=layers * (2.0 * products + (1.0 + _ATTENTION_BACKWARD) * attention),
        head=2.0 * head,
        recomputed=-(-layers * recomputed_part // 1) * (products + attention),
    )


def _vision(arch: Architecture) -> float:
    """One image through the ViT."""
    tokens, width = arch.num_patches + 1, arch.vision_width
    embedding = 2 * arch.num_patches * 3 * arch.patch_size**2 * width
    products = 2 * tokens * (4 * width * width + 2 * width * arch.vision_mlp_width)
    attention = 4 * tokens * tokens * width
    return float(embedding + arch.vision_depth * (products + attention))


def _qformer(arch: Architecture) -> float:
    """One image through the Q-Former."""
    queries, width, patches = arch.num_query_tokens, arch.qformer_width, arch.num_patches + 1
    own = 2 * queries * 4 * width * width + 4 * queries * queries * width
    mlp = 2 * queries * 2 * width * arch.qformer_mlp_width
    crossing = (
        2 * queries * 2 * width * width
        + 2 * patches * 2 * arch.vision_width * width
        + 4 * queries * patches * width
    )
    crossings = -(-arch.qformer_layers // arch.cross_attention_frequency)
    return float(arch.qformer_layers * (own + mlp) + crossings * crossing)


def _language_layer(
    llm: Mapping[str, Any], lengths: Sequence[int], causal: bool
) -> tuple[float, float]:
    """Products and attention of one layer, forward."""
    width, heads = llm["hidden_size"], llm["num_attention_heads"]
    head_width = llm.get("head_dim") or width // heads
    key_heads = llm.get("num_key_value_heads") or heads
    per_token = 2 * (
        2 * width * heads * head_width  # query and output
        + 2 * width * key_heads * head_width
        + 3 * width * llm["intermediate_size"]
    )
    pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
    return float(per_token * sum(lengths)), 4.0 * pairs * heads * head_width
