"""LoRA in an export: added into the matrices that it changes, or beside them as a PEFT adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.huggingface.shards import (
    Entry,
    of_tensor,
    read_entry,
    torch_type,
    write_shards,
)
from mgpt4_hpc.model.huggingface.tensors import language_entries

if TYPE_CHECKING:
    import torch

    from mgpt4_hpc.model.bundle.bundle import Bundle
    from mgpt4_hpc.model.nn.lora import SavedLora

_PAIR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.default\.weight$")
"""How peft names the two matrices beside a layer."""


def merge_lora(entries: Mapping[str, Entry], lora: SavedLora) -> dict[str, Entry]:
    """The matrices that LoRA changes, with its product added, by name.

    They are float32: rounded to half precision a merged matrix would give other answers than the
    two that it is the sum of.

    Raises:
        WeightsError: if the language model has no such matrices.
    """
    merged = {}
    for layer, (down_RI, up_OR) in _pairs(lora).items():
        name = f"{layer}.weight"
        entry = entries.get(name)
        if entry is None or entry.shape != (up_OR.shape[0], down_RI.shape[1]):
            raise WeightsError(
                f"the LoRA of {lora.source} does not fit the language model: it changes {name}, "
                f"{up_OR.shape[0]} x {down_RI.shape[1]}",
                fix="use the bundle that the run was trained on",
            )
        merged[name] = _sum(entry, down_RI, up_OR, lora.alpha / lora.rank)
    return merged


def merged_tensors(bundle: Bundle, lora: SavedLora) -> dict[str, torch.Tensor]:
    """The same matrices in the types of the language model's files, as the original loads them."""
    entries = language_entries(bundle.llm_dir, bundle.llm_config)
    return {
        name: read_entry(merged).to(torch_type(entries[name].dtype))
        for name, merged in merge_lora(entries, lora).items()
    }


def _sum(entry: Entry, down_RI: torch.Tensor, up_OR: torch.Tensor, scale: float) -> Entry:
    def blocks() -> Iterable[bytes]:
        """W + scale * B @ A, summed in float32."""
        total_OI = read_entry(entry).float() + (up_OR.float() @ down_RI.float()) * scale
        return of_tensor(total_OI).blocks()

    return Entry("F32", entry.shape, blocks)


def write_adapter(folder: Path, lora: SavedLora) -> None:
    """Write an adapter for the exported model, as ``peft.PeftModel.from_pretrained`` reads it."""
    tensors = {
        f"base_model.model.language_model.{name.replace('.default.', '.')}": of_tensor(tensor)
        for name, tensor in lora.tensors.items()
    }
    write_shards(folder, tensors)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    names = "|".join(re.escape(name) for name in lora.target_modules)
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": rf"language_model\..*\.({names})",
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _pairs(lora: SavedLora) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Per layer its first and second matrix."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in lora.tensors.items():
        match = _PAIR.match(name)
        if match is None:
            raise WeightsError(f"{lora.source}: {name} is no matrix that can be merged")
        sides.setdefault(match["layer"], {})[match["side"]] = tensor
    return {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
