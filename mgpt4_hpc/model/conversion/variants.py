"""The published MiniGPT-4 variants: their sizes, and what a wrong number probably is in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER, Architecture

_LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
}
_LLAMA_13B = _LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


@dataclass(frozen=True)
class Variant:
    """One published model.

    Attributes:
        name: value of the setting ``model.variant``.
        architecture: of the vision side, and the language model's width.
        llm_config: the language model's sizes, as in its ``config.json``.
    """

    name: str
    architecture: Architecture
    llm_config: dict[str, Any]


VARIANTS: dict[str, Variant] = {
    name: Variant(name, architecture.with_llm_dim(llm_config["hidden_size"]), llm_config)
    for name, architecture, llm_config in (
        ("vicuna7b", EVA_G_QFORMER, _LLAMA_7B),
        ("vicuna13b", EVA_G_QFORMER, _LLAMA_13B),
        ("llama2-7b", EVA_G_PATCHES, _LLAMA_7B | {"rms_norm_eps": 1e-5}),
    )
}


def find_variant(architecture: Architecture) -> Variant | None:
    """The published model of that size, if there is one; towers and projector decide."""
    for variant in VARIANTS.values():
        known = variant.architecture
        same_ends = (known.projector_in, known.llm_dim, known.qformer) == (
            architecture.projector_in,
            architecture.llm_dim,
            architecture.qformer,
        )
        if same_ends and known.vision_width == architecture.vision_width:
            return variant
    return None


def require_variant(wanted: str, architecture: Architecture, source: str) -> None:
    """Refuse the weights of one published model under settings made for another.

    Weights of no published size pass: settings are also a start for models of one's own.

    Raises:
        WeightsError: naming both models.
    """
    variant = find_variant(architecture)
    if wanted == "any" or variant is None or variant.name == wanted:
        return
    raise WeightsError(
        f"the weights in {source} are of {variant.name}, these settings are for {wanted}",
        why="batch sizes, prompt and learning rates belong to the model",
        fix=f"use the preset for {variant.name}, or --set model.variant=any",
    )


_LLM_BY_WIDTH = {4096: "7B", 5120: "13B"}
_TOWER_BY_WIDTH = {768: "with Q-Former (Vicuna)", 5632: "without Q-Former (Llama 2)"}


def llm_words(width: int) -> str:
    """For instance ``the 7B model (width 4096)``."""
    name = _LLM_BY_WIDTH.get(width)
    return f"the {name} model (width {width})" if name else f"a model of width {width}"


def input_words(width: int) -> str:
    """For instance ``the variant with Q-Former (Vicuna) (width 768)``."""
    name = _TOWER_BY_WIDTH.get(width)
    return f"the variant {name} (width {width})" if name else f"an input of width {width}"


OTHER_PROJECTOR = "take the projector that was trained or published for this language model"
"""What to do where ``projector_faults`` finds any."""


def projector_faults(arch: Architecture, llm_dim: int, shape: tuple[int, ...]) -> list[str]:
    """Why a projector's weight of that shape fits neither end; empty if it fits both."""
    faults = []
    out_width, in_width = shape
    if in_width != arch.projector_in:
        faults.append(
            f"the projector takes {input_words(in_width)}, "
            f"the vision side gives {input_words(arch.projector_in)}"
        )
    if out_width != llm_dim:
        faults.append(
            f"the projector is for {llm_words(out_width)}, the LLM is {llm_words(llm_dim)}"
        )
    return faults


def require_projector_fits(
    arch: Architecture, llm_dim: int, shape: tuple[int, ...], source: str
) -> None:
    """Raises WeightsError with both numbers and the likely variants where it does not fit."""
    faults = projector_faults(arch, llm_dim, shape)
    if faults:
        raise WeightsError(
            f"{source}: " + "; ".join(faults), fix=f"{OTHER_PROJECTOR}, or the other model"
        )
