"""A model's tensors under the names that ``Blip2ForConditionalGeneration`` has for them.

The vision side is ``conversion/blip2_folder.py`` the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.huggingface.shards import (
    Entry,
    of_tensor,
    read_entry,
    stored,
    torch_type,
)
from mgpt4_hpc.model.llm_files.check import read_stored
from mgpt4_hpc.model.llm_files.folder import llm_files
from mgpt4_hpc.model.llm_files.tensors import is_buffer
from mgpt4_hpc.model.nn.vision import fit_position_embedding

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def vision_entries(bundle: Bundle) -> dict[str, Entry]:
    """The ViT, ``ln_vision``, query tokens and Q-Former."""
    state = bundle.vision_state()
    state["pos_embed"] = fit_position_embedding(state["pos_embed"], bundle.architecture.grid)
    renamed = {}
    for key, tensor in state.items():
        if key.endswith("attn.v_bias"):
            continue
        if key.endswith("attn.q_bias"):
            # The keys have no bias: transformers keeps zeros in its place.
            value = state[key.replace("q_bias", "v_bias")]
            tensor = torch.cat([tensor, torch.zeros_like(tensor), value])
            key = key.replace("q_bias", "qkv.bias")
        renamed[f"vision_model.{_vision_name(key)}"] = of_tensor(tensor)
    for key, tensor in bundle.qformer_state().items():
        name = key.replace("ln_vision.", "vision_model.post_layernorm.")
        renamed[name] = of_tensor(tensor)
    return renamed


def _vision_name(key: str) -> str:
    if key in _VISION:
        return _VISION[key]
    name, _, kind = key.rpartition(".")
    if name in _VISION:
        return f"{_VISION[name]}.{kind}"
    _, index, part = name.split(".", 2)
    return f"encoder.layers.{index}.{_BLOCK[part]}.{kind}"


def projector_entries(projector: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    """``llama_proj`` from ``weight`` and ``bias``."""
    return {f"language_projection.{key}": of_tensor(t) for key, t in projector.items()}


def language_entries(llm_dir: Path, config: Mapping[str, Any]) -> dict[str, Entry]:
    """The language model's tensors under its own class's names, read only when they are written.

    Raises:
        WeightsError: if a file is broken.
    """
    renamed = {}
    for path in llm_files(llm_dir):
        if path.suffix in (".safetensors", ".bin"):
            for key, info in read_stored(path).items():
                if not is_buffer(key):
                    renamed[key] = stored(info, key)
    if config.get("model_type") == "llama" and not any(k.startswith("model.") for k in renamed):
        renamed = {k if k == "lm_head.weight" else f"model.{k}": e for k, e in renamed.items()}
    return renamed


def with_mean_row(entry: Entry) -> Entry:
    """A matrix with one more row, the mean of the others.

    As a row of the output matrix, its logit is the mean of all logits: never the largest.
    """
    width = entry.shape[1:]
    row_bytes = entry.num_bytes // entry.shape[0]

    def blocks() -> Iterator[bytes]:
        """The matrix's bytes, then the mean row, summed in float64 on the way."""
        total, rest = torch.zeros(width, dtype=torch.float64), b""
        for block in entry.blocks():
            yield block
            rest += block
            count = len(rest) // row_bytes
            if count:
                whole, rest = rest[: count * row_bytes], rest[count * row_bytes :]
                rows = Entry(entry.dtype, (count, *width), partial(list, [whole]))
                total += read_entry(rows).double().sum(0)
        yield from of_tensor((total / entry.shape[0]).to(torch_type(entry.dtype))).blocks()

    return Entry(entry.dtype, (entry.shape[0] + 1, *width), blocks)


def without_last_row(entry: Entry) -> Entry:
    """The same matrix as before ``with_mean_row``."""
    shape = (entry.shape[0] - 1, *entry.shape[1:])
    shorter = Entry(entry.dtype, shape, lambda: _first(entry.blocks(), shorter.num_bytes))
    return shorter


def _first(blocks: Iterable[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:count]
        count -= len(block[:count])
