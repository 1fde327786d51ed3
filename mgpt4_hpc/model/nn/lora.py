"""LoRA on the frozen language model, by peft: small trained matrices beside some of its layers.

The layers are changed in place, so that everything else sees the same model; the added matrices are
float32 whatever the layers compute in, as the projector is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.lazy import quiet_transformers
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors
from mgpt4_hpc.text_files import parse_json

LORA_FILE = "lora.safetensors"
"""Beside ``projector.safetensors`` in a checkpoint that was trained with LoRA."""

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
    # PEFT imports bitsandbytes where it is installed, which warns of missing 4-bit kernels; no
    # layer here has 4 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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


@dataclass(frozen=True)
class SavedLora:
    """What a checkpoint holds of LoRA.

    Attributes:
        tensors: by name.
        rank, alpha, target_modules: as it was trained.
        source: its file, for messages.
    """

    tensors: Mapping[str, torch.Tensor]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    source: str


def read_lora_beside(projector: Path) -> SavedLora | None:
    """The LoRA that lies beside a projector's file; None if it was trained without.

    Raises:
        WeightsError: if it cannot be read, or nothing says how it was set.
    """
    file = projector.parent / LORA_FILE
    if not file.is_file():
        return None
    settings = _settings(projector.parent / "manifest.json")
    return SavedLora(
        tensors=dict(read_tensors(file)),
        rank=int(settings["rank"]),
        alpha=float(settings["alpha"]),
        target_modules=tuple(settings["target_modules"]),
        source=str(file),
    )


def use_lora(language_model: nn.Module, saved: SavedLora | None) -> None:
    """Bring the language model to the state that a checkpoint's projector was trained with.

    Args:
        language_model: with or without LoRA from an earlier call.
        saved: what the checkpoint holds of it, if anything.

    Raises:
        WeightsError: if it cannot be added, or does not fit what an earlier call added.
    """
    own = lora_parameters(language_model)
    if saved is None:
        with torch.no_grad():
            for parameter in own.values():
                parameter.zero_()  # a product with zero adds nothing
        return
    if own and language_model.peft_config["default"].lora_alpha != saved.alpha:  # type: ignore[union-attr,index]
        raise WeightsError(
            f"the LoRA of {saved.source} has another alpha than the one that the model holds",
            fix="load them one after the other, each into a model of its own",
        )
    if not own:
        add_lora(
            language_model,
            rank=saved.rank,
            alpha=saved.alpha,
            target_modules=saved.target_modules,
            seed=0,
        )
    load_lora(language_model, saved.tensors, saved.source)


def _settings(manifest: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = parse_json(manifest.read_text(encoding="utf-8"))["meta"]["lora"]
        return {name: settings[name] for name in ("rank", "alpha", "target_modules")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{manifest} does not say how its LoRA was set: {error!r}",
            fix=f"keep {LORA_FILE} in its checkpoint's folder",
        ) from error
