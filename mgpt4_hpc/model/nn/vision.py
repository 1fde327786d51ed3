"""The frozen vision tower: EVA-CLIP ViT-g/14 without its last block, as timm builds it.

Shapes: N images, C channels, H height and W width in pixels, P patches (+ 1 class token),
V vision width, G patches along one side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.lazy import garbage_collector_off

LAYER_NORM_EPS = 1e-6
"""Epsilon of the blocks' norms, as in the original's ViT."""


def build_vision(arch: Architecture, *, attention: str = "sdpa") -> nn.Module:
    """An ``Eva`` on the current default device (use ``torch.device("meta")`` to allocate nothing).

    Its forward maps pixels_NCHW (normalised) to (N, P + 1, V), without a final norm:
    ``ln_vision`` follows.
    """
    # Importing timm registers all its models, which takes over a second: only where one is built.
    with garbage_collector_off():
        from timm.models.eva import Eva

    tower: nn.Module = Eva(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=arch.vision_width,
        depth=arch.vision_depth,
        num_heads=arch.vision_heads,
        mlp_ratio=arch.vision_mlp_ratio,
        qkv_bias=True,
        use_rot_pos_emb=False,
        use_post_transformer_norm=False,
        use_fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
    )
    for block in tower.get_submodule("blocks").children():
        block.get_submodule("attn").fused_attn = attention != "eager"  # type: ignore[assignment]
    return tower


def load_vision(
    arch: Architecture, state: Mapping[str, torch.Tensor], *, attention: str = "sdpa"
) -> nn.Module:
    """The tower with its weights, in their own types, never initialised at random.

    ``state`` is used, not copied; its position embedding is fitted to ``arch.image_size``.
    """
    with torch.device("meta"):
        tower = build_vision(arch, attention=attention)
    fitted = dict(state)
    fitted["pos_embed"] = fit_position_embedding(fitted["pos_embed"], arch.grid)
    tower.load_state_dict(fitted, strict=True, assign=True)
    # The blocks' key biases are constant zeros, which no file holds.
    for block in tower.get_submodule("blocks").children():
        attention_module = block.get_submodule("attn")
        bias = attention_module.get_parameter("q_bias")
        attention_module.k_bias = torch.zeros(bias.shape, dtype=bias.dtype, device="cpu")
    return tower


def fit_position_embedding(pos_embed: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embedding (1, 1 + G*G, V) for another grid; itself if the grid is the same.

    Bicubic, align_corners=False, no antialiasing: as the original, where a library's default
    with antialiasing would give other numbers.
    """
    old = round((pos_embed.shape[1] - 1) ** 0.5)
    if old == grid:
        return pos_embed
    class_1V, patches_PV = pos_embed[0, :1].float(), pos_embed[0, 1:].float()
    patches_1VGG = patches_PV.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(
        patches_1VGG, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False
    )
    return torch.cat([class_1V, resized[0].flatten(1).T]).unsqueeze(0).to(pos_embed.dtype)
