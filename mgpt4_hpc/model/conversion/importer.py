"""Turn the original's tensors into ours: rename, drop what is known to be unused, miss nothing.

Every key of a source is either used, dropped for a reason that is written down, or an error.

Letters: the tables are those of ``tower_shapes.py``; nothing here depends on a model being built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.tower_shapes import Shapes, connector_shapes, vision_shapes

State = dict[str, Any]
"""Tensors by name, or what a file's header says of them: both have shapes and types."""

Raw = Mapping[str, Any]
"""The same, under the names of their source."""


@dataclass
class KeyReport:
    """What became of each key of one source.

    Attributes:
        source: the file or folder.
        used: our key -> the source's key(s) that it was made from.
        dropped: the source's key -> why it is not needed.
        missing: our keys that the source should have had and a default filled, with the reason.
    """

    source: str
    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KeyReport:
        """Back from ``bundle.json``."""
        return cls(values["source"], values["used"], values["dropped"], values["missing"])


def import_vision(raw: Raw, arch: Architecture, source: str) -> tuple[State, KeyReport]:
    """ViT tensors from ``eva_vit_g.pth``'s keys, which timm shares.

    ``pos_embed`` keeps the file's own grid; ``nn/vision.py`` fits it to the image size.

    Raises:
        WeightsError: listing every missing or unexplained key and every wrong shape.
    """

    def target(key: str) -> str | None:
        """The model's key; None for blocks that the model does not have."""
        block = re.match(r"blocks\.(\d+)\.", key)
        if block and int(block[1]) >= arch.vision_depth:
            return None
        return key

    def why_dropped(key: str) -> str | None:
        """Why a key may be left out; None if it may not."""
        block = re.match(r"blocks\.(\d+)\.", key)
        if block and int(block[1]) == arch.vision_depth:
            return "the last block of the file is not used: BLIP-2 reads the one before it"
        if re.match(r"(norm|fc_norm|head)\.(weight|bias)$", key):
            return "classification head and final norm of CLIP; ln_vision takes the norm's place"
        return None

    expected = vision_shapes(arch, grid=grid_of(raw.get("pos_embed")))
    return convert(raw, expected, target, why_dropped, source)


def import_connector(raw: Raw, arch: Architecture, source: str) -> tuple[State, KeyReport]:
    """``ln_vision``, query tokens and Q-Former from ``blip2_pretrained_flant5xxl.pth``'s keys.

    Raises:
        WeightsError: listing every missing or unexplained key and every wrong shape.
    """
    return convert(raw, connector_shapes(arch), _connector_key, _connector_drop, source)


def import_ln_vision(raw: Raw, arch: Architecture, source: str) -> tuple[State, KeyReport]:
    """``ln_vision`` alone from BLIP-2's file, for a model that has no Q-Former.

    The original never does this (see :func:`identity_connector`).

    Raises:
        WeightsError: listing every missing or unexplained key and every wrong shape.
    """

    def why_dropped(key: str) -> str | None:
        """Why a key may be left out; None if it may not."""
        if key.startswith("Qformer.") or key == "query_tokens":
            return "the Q-Former; this model joins neighbouring patches instead"
        return _connector_drop(key)

    return convert(raw, connector_shapes(arch), _connector_key, why_dropped, source)


def identity_connector(
    arch: Architecture, constant: Callable[[int, float], Any] | None = None
) -> tuple[State, KeyReport]:
    """The connector without a Q-Former file: ``ln_vision`` with weight 1 and bias 0.

    The original's Llama-2 variant never loads the file that holds ``ln_vision``, so its published
    projector was trained on the untouched initial values.

    Args:
        arch: sizes.
        constant: makes a vector of that many equal numbers; a float32 tensor by default.
    """
    if constant is None:
        import torch

        def constant(count: int, value: float) -> Any:
            """A float32 tensor [count]."""
            return torch.full((count,), value)

    width = arch.vision_width
    state = {"ln_vision.weight": constant(width, 1.0), "ln_vision.bias": constant(width, 0.0)}
    reason = "identity: the variant without Q-Former never loads it"
    return state, KeyReport(source="", missing=dict.fromkeys(state, reason))


def import_projector(raw: Raw, source: str) -> tuple[State, KeyReport]:
    """``llama_proj`` from a MiniGPT-4 checkpoint; keys ``weight`` and ``bias``.

    Raises:
        WeightsError: if it is not there, its shapes contradict each other, or other keys are
            unexplained.
    """
    weight = raw.get("llama_proj.weight")
    rows, columns = (
        (weight.shape[0], weight.shape[1]) if weight is not None and weight.dim() == 2 else (0, 0)
    )

    def why_dropped(key: str) -> str | None:
        """Why a key may be left out; None if it may not."""
        if key.endswith((".inv_freq", ".position_ids")):
            return "a constant buffer that the model computes itself"
        if key.startswith(
            ("visual_encoder.", "Qformer.", "llama_model.", "ln_vision.", "query_tokens")
        ):
            return "a frozen tensor, taken from its own source"
        return None

    def target(key: str) -> str | None:
        """The key without its prefix; None for other modules' keys."""
        return key.removeprefix("llama_proj.") if key.startswith("llama_proj.") else None

    expected: Shapes = {"weight": (rows, columns), "bias": (rows,)}
    return convert(raw, expected, target, why_dropped, source)


_TEXT_SIDE = re.compile(
    r"Qformer\.(cls\.|bert\.embeddings\.(word|position)_embeddings\."
    r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)
_CONNECTOR_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(ln_vision\..+|query_tokens)$", r"\1"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (
        r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.(query|key|value)\.",
        r"qformer.\1.attention.\2.",
    ),
    (
        r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:(?:cross)?attention\.output|intermediate_query|output_query)\.)",
        r"qformer.\1",
    ),
)


def _connector_key(key: str) -> str | None:
    return renamed(key, _CONNECTOR_RENAMES)


def renamed(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The key by the first pattern of the table that it fits, replaced; None if it fits none."""
    found = (re.subn(pattern, replacement, key) for pattern, replacement in table)
    return next((new for new, hits in found if hits), None)


def _connector_drop(key: str) -> str | None:
    if key.endswith("embeddings.position_ids"):
        return "a constant buffer; queries have no positions"
    if key.startswith(("t5_proj.", "opt_proj.")):
        return "BLIP-2's own projection; llama_proj takes its place"
    if _TEXT_SIDE.match(key):
        return "text side of the Q-Former; MiniGPT-4 feeds it queries only"
    if key.startswith("visual_encoder."):
        return "a copy of the vision tower, taken from its own file"
    return None


def convert(
    raw: Raw,
    expected: Shapes,
    place: Callable[[str], str | None],
    why_dropped: Callable[[str], str | None],
    source: str,
) -> tuple[State, KeyReport]:
    """Sort every key of ``raw`` into used, dropped or unexplained, and check shapes.

    Args:
        raw: the source's tensors.
        expected: our keys and shapes; all must be filled.
        place: the source's key -> ours, or None where it has no place.
        why_dropped: the source's key -> why it is not needed, or None. Asked only about keys
            that fill nothing.
        source: its name in messages.

    Raises:
        WeightsError: listing every missing or unexplained key and every wrong shape or type.
    """
    state: State = {}
    report = KeyReport(source=source)
    unexplained: list[str] = []
    wrong: list[str] = []
    for key, tensor in raw.items():
        ours = place(key)
        if ours is not None and ours in expected:
            if tuple(tensor.shape) != expected[ours]:
                wrong.append(f"{key} is {tuple(tensor.shape)}, expected {expected[ours]}")
            elif not tensor.is_floating_point():
                wrong.append(f"{key} has dtype {tensor.dtype}, expected a floating type")
            state[ours] = tensor
            report.used[ours] = key
            continue
        reason = why_dropped(key)
        if reason is None:
            unexplained.append(key)
        else:
            report.dropped[key] = reason
    missing = [key for key in expected if key not in state]
    if unexplained or wrong or missing:
        raise WeightsError(
            _fault_text(source, missing, unexplained, wrong),
            fix="download the published file again; sizes of another model are read from an "
            "architecture.json beside it",
        )
    return state, report


def _fault_text(source: str, missing: list[str], unexplained: list[str], wrong: list[str]) -> str:
    lines = [f"{source} does not fit the architecture:"]
    for title, entries in (("missing", missing), ("unexplained", unexplained), ("wrong", wrong)):
        if entries:
            more = f"\n      ... and {len(entries) - 20} more" if len(entries) > 20 else ""
            lines.append(
                f"  {title} ({len(entries)}):"
                + "".join(f"\n      {e}" for e in entries[:20])
                + more
            )
    return "\n".join(lines)


def grid_of(pos_embed: Any) -> int | None:
    """Patches along one side that a position embedding was made for, if it is square."""
    if pos_embed is None or pos_embed.dim() != 3:
        return None
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    return side if side * side == pos_embed.shape[1] - 1 else None
