"""The published MiniGPT-4 variants, to name in words what a wrong number probably is."""

from __future__ import annotations

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture

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
            f"{source}: " + "; ".join(faults),
            fix="take the projector that was published for this language model, or the other model",
        )
