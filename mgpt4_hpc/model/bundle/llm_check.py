"""Is a language model's folder whole and consistent? Answered from headers, not from weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.headers import TensorInfo, read_header
from mgpt4_hpc.model.bundle.llm_folder import llm_files, llm_width, read_llm_config, weight_map
from mgpt4_hpc.model.bundle.tokenizer import PAD_TOKEN, load_tokenizer
from mgpt4_hpc.model.bundle.untrusted_files import require_real_file

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass
class LlmCheck:
    """What was found in the folder.

    Attributes:
        config: ``config.json``; empty if it could not be read.
        width: of the hidden states; 0 if unknown.
        num_parameters: numbers in the weight files; 0 if unknown.
        dtypes: types of the weights, as safetensors names them.
        vocab_size: rows that the tokenizer needs; 0 if unknown.
        faults, notes: what makes it unusable, and what is merely worth knowing.
    """

    config: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    num_parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    vocab_size: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_llm(folder: Path) -> LlmCheck:
    """Look at configuration, completeness, shapes and tokenizer, collecting every fault."""
    found = LlmCheck()
    for look in (_look_at_config, _look_at_weights, _look_at_tokenizer):
        try:
            look(folder, found)
        except WeightsError as error:
            found.faults.append(str(error))
        if not found.config:
            break
    return found


def _look_at_config(folder: Path, found: LlmCheck) -> None:
    found.config = read_llm_config(folder)
    found.width = llm_width(found.config, folder)


def _look_at_weights(folder: Path, found: LlmCheck) -> None:
    files = llm_files(folder)
    for index in (path for path in files if path.name.endswith(".index.json")):
        _require_indexed(index)
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors |= read_header(path)
        elif path.suffix == ".bin":
            require_real_file(path)
            found.num_parameters += path.stat().st_size // 2
    if not tensors:
        found.notes.append("weights are .bin files: shapes are checked when they are loaded")
        return
    found.num_parameters = sum(math.prod(info.shape) for info in tensors.values())
    found.dtypes = sorted({info.dtype for info in tensors.values()})
    embedding = next((info for key, info in tensors.items() if key.endswith(_EMBEDDINGS)), None)
    if embedding is None:
        found.notes.append("no tensor is known to be the token embedding; its size is not checked")
        return
    rows = found.config.get("vocab_size", embedding.shape[0])
    if embedding.shape != (rows, found.width):
        found.faults.append(
            f"{folder}: config.json says {rows} tokens of width {found.width}, "
            f"the embedding is {embedding.shape[0]} x {embedding.shape[1]}"
        )


def _require_indexed(index: Path) -> None:
    """Every shard that the index names is there and, for safetensors, holds what it should."""
    files = weight_map(index)
    names = sorted(set(files.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise WeightsError(
            f"{index.parent} lacks {len(absent)} of {len(names)} weight files: {absent}",
            fix="copy or download them",
        )
    for name in names:
        if name.endswith(".safetensors"):
            held = read_header(index.parent / name)
            lost = [key for key, file in files.items() if file == name and key not in held]
            if lost:
                raise WeightsError(
                    f"{index.parent / name} lacks {lost[:4]}, which the index promises"
                )


def _look_at_tokenizer(folder: Path, found: LlmCheck) -> None:
    tokenizer = load_tokenizer(folder)
    found.vocab_size = tokenizer.vocab_size
    if tokenizer.decode([tokenizer.pad_id]).strip() != PAD_TOKEN:
        found.notes.append(
            f"the vocabulary has no {PAD_TOKEN!r}, which the original pads with; "
            f"token {tokenizer.pad_id} pads instead (padding is never learned)"
        )
