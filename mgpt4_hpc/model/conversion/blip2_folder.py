"""Hugging Face's BLIP-2 (``Salesforce/blip2-flan-t5-xxl``) as a source of the vision side.

It holds the same numbers as the original's two ``.pth`` files under other names: the blocks' query
and value biases are one vector with zeros for the keys, and ``post_layernorm`` is ``ln_vision``.
Its language model, a T5, is neither needed nor read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.conversion.importer import KeyReport, State, convert, grid_of, renamed
from mgpt4_hpc.model.tower_shapes import connector_shapes, vision_shapes
from mgpt4_hpc.model.weight_files.headers import TensorInfo, read_header
from mgpt4_hpc.model.weight_files.untrusted_files import require_real_file
from mgpt4_hpc.text_files import parse_json

_UNREAD = {
    "language_model.": "BLIP-2's own language model",
    "language_projection.": "BLIP-2's own projection; llama_proj takes its place",
}

_VISION_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.(fc[12])\.", r"blocks.\1.mlp.\2."),
)

_DEFAULTS: dict[str, int] = {
    "vision_config.image_size": 224,
    "vision_config.patch_size": 14,
    "vision_config.hidden_size": 1408,
    "vision_config.num_hidden_layers": 39,
    "vision_config.num_attention_heads": 16,
    "vision_config.intermediate_size": 6144,
    "qformer_config.hidden_size": 768,
    "qformer_config.num_hidden_layers": 12,
    "qformer_config.num_attention_heads": 12,
    "qformer_config.intermediate_size": 3072,
    "qformer_config.cross_attention_frequency": 2,
    "num_query_tokens": 32,
}
"""transformers leaves a setting out of config.json where it equals these."""


@dataclass(frozen=True)
class Blip2Folder:
    """An opened folder: its sizes and where each wanted tensor is."""

    path: Path
    architecture: Architecture
    _tensors: State
    _unread: dict[str, str]

    def vision(self, arch: Architecture) -> tuple[State, KeyReport]:
        """ViT tensors under timm's names. Raises WeightsError as ``convert`` does."""
        ours = {k: t for k, t in self._tensors.items() if not _is_connector(k)}
        split, origins = _split_biases(ours, str(self.path))
        position = split.get("vision_model.embeddings.position_embedding")
        expected = vision_shapes(arch, grid=grid_of(position))
        state, report = convert(split, expected, _vision_key, _no_reason, str(self.path))
        report.used = {ours: origins.get(theirs, theirs) for ours, theirs in report.used.items()}
        report.dropped.update(self._unread)
        return state, report

    def connector(self, arch: Architecture) -> tuple[State, KeyReport]:
        """``ln_vision``, query tokens and Q-Former. Raises WeightsError as ``convert`` does.

        For an architecture without Q-Former only ``ln_vision`` is taken.
        """
        theirs = {key: t for key, t in self._tensors.items() if _is_connector(key)}
        why_dropped = _no_reason if arch.qformer else _not_ln_vision
        return convert(theirs, connector_shapes(arch), _connector_key, why_dropped, str(self.path))


def open_blip2_folder(path: Path) -> Blip2Folder:
    """Open the folder, reading of its files only what the vision side needs.

    Raises:
        WeightsError: if it has no config.json or no safetensors, or a file is broken.
    """
    architecture = _architecture(path)
    tensors: State = {}
    unread: dict[str, int] = {}
    for key, info in _entries(path):
        prefix = next((p for p in _UNREAD if key.startswith(p)), None)
        if prefix is None:
            tensors[key] = info
        else:
            unread[prefix] = unread.get(prefix, 0) + 1
    reasons = {f"{p}* ({count} tensors)": _UNREAD[p] for p, count in unread.items()}
    return Blip2Folder(path, architecture, tensors, reasons)


def _entries(path: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Every tensor of the folder's safetensors, as the headers describe it."""
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise WeightsError(
            f"{path} has no safetensors files",
            fix="download the BLIP-2 repository's *.safetensors, not its *.bin",
        )
    for shard in shards:
        yield from read_header(shard).items()


_GIVE = "give the original's own file, or the folder of Salesforce/blip2-flan-t5-xxl"


def _architecture(path: Path) -> Architecture:
    config_path = path / "config.json"
    require_real_file(config_path)
    try:
        config = parse_json(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"cannot read {config_path}: {error}", fix=_GIVE) from None
    if config.get("model_type") != "blip-2":
        raise WeightsError(f"{path} is a {config.get('model_type')!r} model, not blip-2", fix=_GIVE)

    def size(name: str) -> int:
        """A size by its dotted name; transformers' default if the file leaves it out."""
        value: Any = config
        for part in name.split("."):
            value = (value or {}).get(part)
        return int(value) if value is not None else _DEFAULTS[name]

    width, hidden = size("vision_config.hidden_size"), size("vision_config.intermediate_size")
    return Architecture(
        image_size=size("vision_config.image_size"),
        patch_size=size("vision_config.patch_size"),
        vision_width=width,
        vision_depth=size("vision_config.num_hidden_layers"),
        vision_heads=size("vision_config.num_attention_heads"),
        vision_mlp_ratio=(hidden + 0.5) / width,
        qformer=True,
        qformer_width=size("qformer_config.hidden_size"),
        qformer_layers=size("qformer_config.num_hidden_layers"),
        qformer_heads=size("qformer_config.num_attention_heads"),
        qformer_mlp_width=size("qformer_config.intermediate_size"),
        num_query_tokens=size("num_query_tokens"),
        cross_attention_frequency=size("qformer_config.cross_attention_frequency"),
    )


def _is_connector(key: str) -> bool:
    return key.startswith(("qformer.", "vision_model.post_layernorm.")) or key == "query_tokens"


def _vision_key(key: str) -> str | None:
    if re.match(r"blocks\.\d+\.attn\.[qv]_bias$", key):
        return key
    return renamed(key, _VISION_RENAMES)


def _connector_key(key: str) -> str | None:
    return key.replace("vision_model.post_layernorm.", "ln_vision.")


def _no_reason(_key: str) -> str | None:
    return None


def _not_ln_vision(_key: str) -> str | None:
    return "the Q-Former; this model joins neighbouring patches instead"


def _split_biases(tensors: State, source: str) -> tuple[State, dict[str, str]]:
    """Each ``qkv.bias`` as query and value bias; also, where each of those came from.

    Raises:
        WeightsError: if a key bias is not zero, which timm's block could not reproduce.
    """
    split: State = {}
    origins: dict[str, str] = {}
    for key, tensor in tensors.items():
        match = re.match(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias$", key)
        if not match or tensor.dim() != 1 or tensor.shape[0] % 3:
            split[key] = tensor
            continue
        query, middle, value = _thirds(tensor)
        if any(middle.read()):
            raise WeightsError(f"{source}: {key} has a key bias that is not zero")
        for name, part in (("q_bias", query), ("v_bias", value)):
            split[f"blocks.{match[1]}.attn.{name}"] = part
            origins[f"blocks.{match[1]}.attn.{name}"] = key
    return split, origins


def _thirds(tensor: TensorInfo) -> list[TensorInfo]:
    assert tensor.start is not None  # in safetensors all tensors are contiguous
    shape, size = (tensor.shape[0] // 3,), tensor.num_bytes // 3
    starts = [tensor.start + size * index for index in range(3)]
    return [replace(tensor, shape=shape, num_bytes=size, start=start) for start in starts]
