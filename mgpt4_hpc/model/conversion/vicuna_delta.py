"""Vicuna v0 from LLaMA and the published difference, as FastChat 0.1.10's ``apply_delta`` does it.

Both are added in the delta's type (float16). The delta has one token more than LLaMA, ``[PAD]``
(32,001 rows in the embedding and in the output matrix instead of 32,000): LLaMA's missing row
counts as zeros. Tensors are written as they are added, so no more than one is held in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.llm_files.folder import companion_files, llm_files, read_llm_config
from mgpt4_hpc.model.llm_files.tensors import is_buffer
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord
from mgpt4_hpc.model.weight_files.headers import TensorInfo, read_header
from mgpt4_hpc.model.weight_files.one_pass import Output, is_finite, lay_out, tensor_info
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors

if TYPE_CHECKING:
    import torch

_VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight")
_FINAL_NORM = "model.norm.weight"


def merge_vicuna_delta(
    base: Path,
    delta: Path,
    out: Path,
    *,
    finite: bool = True,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, WeightFileRecord]:
    """Write ``base + delta`` as a Hugging Face folder of safetensors.

    Args:
        base: LLaMA's folder.
        delta: the difference's folder; the result gets its tokenizer and configuration.
        out: the new folder; it must not exist.
        finite: refuse sums that hold NaN or infinity.
        say: called with a line per shard, and once about the vocabulary if it differs.

    Returns:
        A record of each weight file that was written, by name.

    Raises:
        WeightsError: if tensors are missing on either side, shapes differ otherwise than by added
            vocabulary, or the delta looks like a finished model; ``out`` is then incomplete.
    """
    where = _headers(base)
    shards = [path for path in llm_files(delta) if path.suffix in (".safetensors", ".bin")]
    out.mkdir(parents=True)
    weight_map, records = {}, {}
    changed = {key for shard in shards for key in read_header(shard)}
    if unused := sorted(set(where) - changed):
        raise WeightsError(f"{base} has tensors that {delta} does not change: {unused[:8]}")
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        say(f"adding {shard.name} ({number} of {len(shards)})")
        keys, records[name] = _merge_shard(shard, where, out / name, finite)
        weight_map.update(dict.fromkeys(keys, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    rows = _copy_settings(delta, out)
    base_rows = read_llm_config(base).get("vocab_size")
    if rows != base_rows:
        say(f"vocabulary: {base_rows} tokens in the base, {rows} in the delta and the result")
    return records


def _headers(folder: Path) -> dict[str, TensorInfo]:
    """What the folder's weight files hold; constant buffers left out."""
    files = [path for path in llm_files(folder) if path.suffix in (".safetensors", ".bin")]
    return {k: info for path in files for k, info in read_header(path).items() if not is_buffer(k)}


def _merge_shard(
    shard: Path, where: Mapping[str, TensorInfo], out: Path, finite: bool
) -> tuple[list[str], WeightFileRecord]:
    """Add one shard's tensors, one after the other, into a file; returns their names."""
    described = {key: info for key, info in read_header(shard).items() if not is_buffer(key)}
    missing = sorted(set(described) - set(where))
    if missing:
        raise WeightsError(f"the base has no {missing[:8]}, which {shard} would change")
    difference = read_tensors(shard)
    opened = {path: read_tensors(path) for path in {where[key].file for key in described}}
    layout = lay_out(described)
    output = Output(out)
    output.write(layout.header)
    keys = [*layout.before, *layout.copied, *layout.after]
    for key in keys:
        total = tensor_info(_add(key, opened[where[key].file][key], difference[key], shard))
        assert total.data is not None
        if finite and not is_finite(total.data, total.dtype):
            raise WeightsError(
                f"{shard}: {key} plus the base's holds NaN or infinity",
                fix="compare the hashes of both folders' files with their sources'",
            )
        output.write(total.data)
    return keys, output.close()


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
        longer = base.new_zeros(delta.shape)
        longer[: base.shape[0]] = base
        return delta + longer
    raise WeightsError(
        f"{key} is {tuple(base.shape)} in the base and {tuple(delta.shape)} in {source}",
        fix="take the delta for this size of LLaMA (7B or 13B)",
    )


def _copy_settings(delta: Path, out: Path) -> int:
    """Tokenizer and configuration of the delta; returns the size of the vocabulary."""
    settings = [p for p in llm_files(delta) if p.name == "config.json" or "tokenizer" in p.name]
    for path in settings + companion_files(delta):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
    return int(read_llm_config(delta)["vocab_size"])
