"""LoRA on the frozen language model, by peft: small trained matrices beside some of its layers.

The layers are changed in place, so that everything else sees the same model; the added matrices are
float32 whatever the layers compute in, as the projector is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.language import quiet_transformers

MISSING = "lora.rank needs peft: pip install 'mgpt4-hpc[lora]'"


def lora_is_installed() -> bool:
    """Whether peft can be imported, without importing it."""
    return find_spec("peft") is not None


def add_lora(
    language_model: nn.Module,
    *,
    rank: int,
    alpha: float,
    target_modules: tuple[str, ...],
    seed: int,
) -> dict[str, nn.Parameter]:
    """Add LoRA to the layers of those names; returns its parameters by name.

    The first matrices are random under ``seed``, the second zero: nothing changes at first.

    Raises:
        WeightsError: if peft is missing or no layer has such a name.
    """
    if not lora_is_installed():
        raise WeightsError("peft is not installed", fix=MISSING)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, language_model)
        except ValueError as error:
            raise WeightsError(
                f"LoRA cannot be added: {error}",
                fix="name layers of this language model in lora.target_modules",
            ) from error
    language_model.eval()
    for parameter in language_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return lora_parameters(language_model)


def lora_parameters(language_model: nn.Module) -> dict[str, nn.Parameter]:
    """What LoRA added, by name; empty without it."""
    return {name: p for name, p in language_model.named_parameters() if p.requires_grad}


def load_lora(language_model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Put saved values into the added matrices.

    Raises:
        WeightsError: if they are of other layers or of another rank.
    """
    own = lora_parameters(language_model)
    fitting = {name: tuple(p.shape) for name, p in own.items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if fitting != given:
        wrong = sorted(set(fitting.items()) ^ set(given.items()))
        raise WeightsError(
            f"the LoRA of {source} does not fit this model's: {wrong[:4]}",
            fix="use the same lora.rank and lora.target_modules",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
