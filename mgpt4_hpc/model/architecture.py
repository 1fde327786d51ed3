"""What a MiniGPT-4 is made of: sizes of the vision tower, the Q-Former and the language model.

Names of the fields are those of ``architecture.json`` beside a set of weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.text_files import parse_json

PATCHES_PER_TOKEN = 4
"""Neighbouring patch tokens joined into one when there is no Q-Former (the Llama-2 variant)."""

LOGITS_AT_ONCE = 1024
"""Number of tokens that have logits on a GPU at a time; the memory estimate uses it."""

EVA_MLP_RATIO = 4.3637
"""EVA-CLIP ViT-g's: int(1408 x 4.3637) = 6144 hidden units."""

VISION_HEADS_BY_WIDTH: dict[int, int] = {1408: 16}
"""Tensor shapes do not show the number of heads; these widths are known models (EVA ViT-g)."""

QFORMER_HEADS_BY_WIDTH: dict[int, int] = {768: 12}
"""BERT-base, which every published BLIP-2 Q-Former is."""

_FIX = "write the sizes as in mgpt4_hpc.model.architecture.Architecture, or remove the file"


@dataclass(frozen=True)
class Architecture:
    """Sizes from which every tensor's shape follows.

    Attributes:
        image_size: side of the square input image, in pixels.
        patch_size: side of a patch, in pixels.
        vision_width, vision_depth, vision_heads, vision_mlp_ratio: the ViT's; ``vision_depth``
            counts the blocks that are used, one less than the original's file holds.
        qformer: whether a Q-Former stands between the ViT and the projector.
        qformer_width, ..., num_query_tokens: the Q-Former's sizes; 0 without one.
        cross_attention_frequency: every how many Q-Former layers one looks at the image.
        llm_dim: width of the language model's hidden states; None until its folder is read.

    Raises:
        WeightsError: if the sizes contradict each other (from ``__post_init__``).
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vision_mlp_ratio: float = EVA_MLP_RATIO
    qformer: bool = True
    qformer_width: int = 0
    qformer_layers: int = 0
    qformer_heads: int = 0
    qformer_mlp_width: int = 0
    num_query_tokens: int = 0
    cross_attention_frequency: int = 2
    llm_dim: int | None = None

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise WeightsError(
                "the architecture contradicts itself: " + "; ".join(faults), fix=_FIX
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of the whole image."""
        return self.grid * self.grid

    @property
    def vision_mlp_width(self) -> int:
        """Hidden units of a ViT block's MLP, rounded down as timm does."""
        return int(self.vision_width * self.vision_mlp_ratio)

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image takes in the language model's input."""
        return self.num_query_tokens if self.qformer else self.num_patches // PATCHES_PER_TOKEN

    @property
    def projector_in(self) -> int:
        """Width of ``llama_proj``'s input."""
        return self.qformer_width if self.qformer else self.vision_width * PATCHES_PER_TOKEN

    def with_llm_dim(self, llm_dim: int) -> Architecture:
        """The same, with the language model's width."""
        return dataclasses.replace(self, llm_dim=llm_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``architecture.json`` and ``bundle.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, source: str = "architecture.json"
    ) -> Architecture:
        """Architecture from plain values.

        Raises:
            WeightsError: on unknown or missing keys and on values of the wrong type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        missing = sorted(set(required) - set(values))
        if unknown or missing:
            raise WeightsError(
                f"{source}: unknown keys {unknown}, missing keys {missing}",
                fix=f"the keys are: {', '.join(fields)}",
            )
        for name, value in values.items():
            kind = fields[name].type
            fits = {
                "int": isinstance(value, int) and not isinstance(value, bool),
                "float": isinstance(value, int | float) and not isinstance(value, bool),
                "bool": isinstance(value, bool),
                "int | None": value is None or isinstance(value, int),
            }[str(kind)]
            if not fits:
                raise WeightsError(f"{source}: {name} = {value!r} is not of type {kind}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Architecture:
        """Architecture from a JSON file. Raises WeightsError where it is not one."""
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot read {path}: {error}", fix=_FIX) from error
        if not isinstance(values, dict):
            raise WeightsError(
                f"{path} holds a {type(values).__name__}, not an object of sizes", fix=_FIX
            )
        return cls.from_dict(values, source=str(path))


def _faults(arch: Architecture) -> list[str]:
    """What does not fit together, in words."""
    faults = []
    positive = ["image_size", "patch_size", "vision_width", "vision_depth", "vision_heads"]
    if arch.qformer:
        positive += [
            "qformer_width", "qformer_layers", "qformer_heads", "qformer_mlp_width",
            "num_query_tokens", "cross_attention_frequency",
        ]  # fmt: skip
    faults += [f"{name} = {getattr(arch, name)}" for name in positive if getattr(arch, name) < 1]
    if faults:
        return faults
    if arch.image_size % arch.patch_size:
        faults.append(
            f"image_size {arch.image_size} is no multiple of patch_size {arch.patch_size}"
        )
    if arch.vision_width % arch.vision_heads:
        faults.append(
            f"vision_width {arch.vision_width} does not divide by {arch.vision_heads} heads"
        )
    if arch.qformer and arch.qformer_width % arch.qformer_heads:
        faults.append(
            f"qformer_width {arch.qformer_width} does not divide by {arch.qformer_heads} heads"
        )
    if not arch.qformer and arch.num_patches % PATCHES_PER_TOKEN:
        faults.append(f"{arch.num_patches} patches cannot be joined by {PATCHES_PER_TOKEN}")
    if not math.isfinite(arch.vision_mlp_ratio) or arch.vision_mlp_width < 1:
        faults.append(f"vision_mlp_ratio = {arch.vision_mlp_ratio}")
    return faults


EVA_G_QFORMER = Architecture(
    image_size=224, patch_size=14, vision_width=1408, vision_depth=39, vision_heads=16,
    qformer=True, qformer_width=768, qformer_layers=12, qformer_heads=12, qformer_mlp_width=3072,
    num_query_tokens=32,
)  # fmt: skip
"""EVA-CLIP ViT-g/14 with BLIP-2's Q-Former: MiniGPT-4 on Vicuna."""

EVA_G_PATCHES = Architecture(
    image_size=224,
    patch_size=14,
    vision_width=1408,
    vision_depth=39,
    vision_heads=16,
    qformer=False,
)
"""EVA-CLIP ViT-g/14 alone: MiniGPT-4 on Llama 2."""
