"""Read an architecture off the shapes of the original's tensors.

Everything but the numbers of heads can be seen; those are known for the published models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import (
    EVA_MLP_RATIO,
    QFORMER_HEADS_BY_WIDTH,
    VISION_HEADS_BY_WIDTH,
    Architecture,
)
from mgpt4_hpc.model.conversion.importer import Raw

_GIVE_IT = (
    "write an architecture.json beside the weights; its keys are those of "
    "mgpt4_hpc.model.architecture.Architecture"
)


def detect_architecture(vision: Raw, connector: Raw | None) -> Architecture:
    """Architecture of a set of original weights.

    Args:
        vision: tensors of ``eva_vit_g.pth``.
        connector: tensors of the BLIP-2 file, or None for the variant without Q-Former.

    Raises:
        WeightsError: where a needed tensor is missing or a number of heads is not known; it says
            to write an architecture.json.
    """
    pos_embed = _need(vision, "pos_embed", 3)
    patch = _need(vision, "patch_embed.proj.weight", 4)
    width = pos_embed.shape[2]
    grid = round((pos_embed.shape[1] - 1) ** 0.5)
    hidden = _need(vision, "blocks.0.mlp.fc1.weight", 2).shape[0]
    ratio = EVA_MLP_RATIO if int(width * EVA_MLP_RATIO) == hidden else (hidden + 0.5) / width
    sizes: dict[str, int | float | bool] = {
        "image_size": grid * patch.shape[3],
        "patch_size": patch.shape[3],
        "vision_width": width,
        # BLIP-2 reads the last block but one, so the file always has one more than is used.
        "vision_depth": _count(vision, r"blocks\.(\d+)\.") - 1,
        "vision_heads": _heads(width, VISION_HEADS_BY_WIDTH, "vision"),
        "vision_mlp_ratio": ratio,
        "qformer": connector is not None,
    }
    if connector is not None:
        sizes |= _qformer_sizes(connector)
    return Architecture.from_dict(sizes, source="the shapes of the tensors")


def _qformer_sizes(raw: Raw) -> dict[str, int | float | bool]:
    queries = _need(raw, "query_tokens", 3)
    prefix = "Qformer.bert.encoder.layer."
    crossing = sorted(
        {
            int(m[1])
            for key in raw
            if (m := re.match(re.escape(prefix) + r"(\d+)\.crossattention\.", key))
        }
    )
    return {
        "qformer_width": queries.shape[2],
        "qformer_layers": _count(raw, re.escape(prefix) + r"(\d+)\."),
        "qformer_heads": _heads(queries.shape[2], QFORMER_HEADS_BY_WIDTH, "Q-Former"),
        "qformer_mlp_width": _need(raw, f"{prefix}0.intermediate_query.dense.weight", 2).shape[0],
        "num_query_tokens": queries.shape[1],
        "cross_attention_frequency": crossing[1] - crossing[0] if len(crossing) > 1 else 2,
    }


def _need(raw: Raw, key: str, dims: int) -> Any:
    tensor = raw.get(key)
    if tensor is None or tensor.dim() != dims:
        seen = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise WeightsError(f"cannot tell the architecture: {key} is {seen}", fix=_GIVE_IT)
    return tensor


def _count(raw: Raw, pattern: str) -> int:
    return 1 + max((int(m[1]) for key in raw if (m := re.match(pattern, key))), default=-1)


def _heads(width: int, known: Mapping[int, int], what: str) -> int:
    if width in known:
        return known[width]
    raise WeightsError(
        f"cannot tell the number of {what} attention heads of width {width} from shapes "
        f"(known widths: {', '.join(map(str, known))})",
        fix=_GIVE_IT,
    )
