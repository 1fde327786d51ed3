"""Vicuna v0 from LLaMA and the published difference, as FastChat 0.1.10's ``apply_delta`` does it.

Both are added in the delta's type (float16). The delta has one token more than LLaMA, ``[PAD]``
(32,001 rows in the embedding and in the output matrix instead of 32,000): LLaMA's missing row
counts as zeros. Shards are written as they are read, so no more than one is held in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.llm_folder import companion_files, llm_files, read_llm_config
from mgpt4_hpc.model.bundle.untrusted_files import read_tensors

if TYPE_CHECKING:
    import torch

_VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight")
_FINAL_NORM = "model.norm.weight"


def merge_vicuna_delta(
    base: Path, delta: Path, out: Path, *, say: Callable[[str], None] = lambda _line: None
) -> Path:
    """Write ``base + delta`` as a Hugging Face folder of safetensors; returns ``out``.

    Args:
        base: LLaMA's folder.
        delta: the difference's folder, whose tokenizer and configuration the result gets.
        out: the new folder; it must not exist.
        say: called with a line per shard, and once about the vocabulary if it differs.

    Raises:
        WeightsError: if tensors are missing on either side, shapes differ otherwise than by added
            vocabulary, or the delta looks like a finished model.
    """
    if out.exists():
        raise WeightsError(f"{out} exists already", fix="choose another name, or remove it first")
    where = _tensor_index(base)
    shards = [path for path in llm_files(delta) if path.suffix in (".safetensors", ".bin")]
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weight_map = _merge_shards(shards, where, temporary, say)
        unused = sorted(set(where) - set(weight_map))
        if unused:
            raise WeightsError(f"{base} has tensors that {delta} does not change: {unused[:8]}")
        index = {"metadata": {}, "weight_map": weight_map}
        (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        rows = _copy_settings(delta, temporary)
        base_rows = read_llm_config(base).get("vocab_size")
        if rows != base_rows:
            say(f"vocabulary: {base_rows} tokens in the base, {rows} in the delta and the result")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _tensor_index(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor; constant buffers left out."""
    files = [path for path in llm_files(folder) if path.suffix in (".safetensors", ".bin")]
    return {key: path for path in files for key in read_tensors(path) if not _is_buffer(key)}


def _merge_shards(
    shards: list[Path], where: dict[str, Path], out: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Add shard by shard; returns which tensor went into which file."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        say(f"adding {shard.name} ({number} of {len(shards)})")
        difference = {k: t for k, t in read_tensors(shard).items() if not _is_buffer(k)}
        missing = sorted(set(difference) - set(where))
        if missing:
            raise WeightsError(f"the base has no {missing[:8]}, which {shard} would change")
        opened = {path: read_tensors(path) for path in {where[key] for key in difference}}
        merged = {
            key: _add(key, opened[where[key]][key], tensor, shard)
            for key, tensor in difference.items()
        }
        save_file(merged, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(merged, name))
    return weight_map


def _add(key: str, base: torch.Tensor, delta: torch.Tensor, source: Path) -> torch.Tensor:
    base = base.to(delta.dtype)
    if key == _FINAL_NORM and delta.float().abs().mean() > 0.5 * base.float().abs().mean():
        raise WeightsError(
            f"{source} looks like a finished model, not like a difference to LLaMA",
            why="its final norm is as large as the base's; adding the two would give garbage",
            fix="use it as --llm directly",
        )
    if base.shape == delta.shape:
        return base + delta
    extra = delta.shape[0] - base.shape[0]
    if key in _VOCABULARY_ROWS and base.shape[1:] == delta.shape[1:] and extra > 0:
        return delta + base.new_zeros(delta.shape).index_copy_(0, _arange(base.shape[0]), base)
    raise WeightsError(
        f"{key} is {tuple(base.shape)} in the base and {tuple(delta.shape)} in {source}",
        fix="take the delta for this size of LLaMA (7B or 13B)",
    )


def _arange(count: int) -> torch.Tensor:
    import torch

    return torch.arange(count)


def _copy_settings(delta: Path, out: Path) -> int:
    """Tokenizer and configuration of the delta; returns the size of the vocabulary."""
    settings = [p for p in llm_files(delta) if p.name == "config.json" or "tokenizer" in p.name]
    for path in settings + companion_files(delta):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
    return int(read_llm_config(delta)["vocab_size"])


def _is_buffer(key: str) -> bool:
    return key.endswith(".rotary_emb.inv_freq")
