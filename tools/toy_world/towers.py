"""The vision tower and the Q-Former as libraries have them, at the toy's size.

Legend of shapes: B batch, Q queries, P patches, V vision width, D Q-Former width.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from timm.layers import build_sincos2d_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from toy_world.raster import IMAGE_SIZE, PATCH_SIZE
from toy_world.scenes import NUM_KEYWORDS

ARCHITECTURE: dict[str, int | float | bool] = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "vision_width": 96,
    "vision_depth": 3,
    "vision_heads": 6,
    "vision_mlp_ratio": 4.0,
    "qformer": True,
    "qformer_width": 96,
    "qformer_layers": 4,
    "qformer_heads": 4,
    "qformer_mlp_width": 192,
    "num_query_tokens": NUM_KEYWORDS,
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILTER_NORM = 0.3


class Towers(nn.Module):
    """Frozen part of the model up to the projection: vision tower, `ln_vision`, Q-Former."""

    def __init__(self, shrink: int = 1) -> None:
        """`shrink` makes towers for pictures (and patches) that many times smaller."""
        super().__init__()
        width = int(ARCHITECTURE["vision_width"])
        query_width = int(ARCHITECTURE["qformer_width"])
        self.visual_encoder = Eva(
            img_size=IMAGE_SIZE // shrink,
            patch_size=PATCH_SIZE // shrink,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depth=int(ARCHITECTURE["vision_depth"]),
            num_heads=int(ARCHITECTURE["vision_heads"]),
            mlp_ratio=float(ARCHITECTURE["vision_mlp_ratio"]),
            qkv_bias=True,
            use_rot_pos_emb=False,
            use_post_transformer_norm=False,
            use_fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.ln_vision = nn.LayerNorm(width)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=query_width,
                num_hidden_layers=int(ARCHITECTURE["qformer_layers"]),
                num_attention_heads=int(ARCHITECTURE["qformer_heads"]),
                intermediate_size=int(ARCHITECTURE["qformer_mlp_width"]),
                encoder_hidden_size=width,
                cross_attention_frequency=2,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.query_tokens_1QD = nn.Parameter(torch.randn(1, NUM_KEYWORDS, query_width))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Scales for narrow layers (the libraries' 0.02 is made for wide ones), smooth filters."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        filters = self.visual_encoder.patch_embed.proj.weight
        coarse = torch.randn(*filters.shape[:2], 8, 8)
        smooth = interpolate(coarse, size=filters.shape[2:], mode="bilinear")
        filters.copy_(smooth / smooth.flatten(1).norm(dim=1)[:, None, None, None] * FILTER_NORM)
        width, grid = filters.shape[0], IMAGE_SIZE // PATCH_SIZE
        positions = build_sincos2d_pos_embed([grid, grid], width, temperature=20.0)
        self.visual_encoder.pos_embed[0, 1:] = positions * 0.7

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Query features [B, Q, D] and vision features [B, 1 + P, V]."""
        vision_BPV = self.ln_vision(self.visual_encoder(images_B3HW))
        queries_BQD = self.query_tokens_1QD.expand(len(images_B3HW), -1, -1)
        out_BQD = self.qformer(
            query_embeds=queries_BQD, encoder_hidden_states=vision_BPV
        ).last_hidden_state
        return out_BQD, vision_BPV


def enlarge(small: Towers, shrink: int) -> Towers:
    """Towers for full-size pictures that see exactly what `small` sees of the averaged ones.

    A filter over `shrink` x `shrink` averages is a filter over the pixels that is constant there.
    """
    state = small.state_dict()
    name = "visual_encoder.patch_embed.proj.weight"
    spread = state[name].repeat_interleave(shrink, 2).repeat_interleave(shrink, 3)
    state[name] = spread / shrink**2
    towers = Towers()
    towers.load_state_dict(state)
    return towers.eval()


def normalised(pixels_BHW3: NDArray[np.uint8]) -> Tensor:
    """Pixels to the images [B, 3, H, W] that the vision tower takes."""
    images_BHW3 = torch.from_numpy(pixels_BHW3).float().div_(255.0)
    images_BHW3.sub_(torch.tensor(MEAN)).div_(torch.tensor(STD))
    return images_BHW3.permute(0, 3, 1, 2).contiguous()


def decode(jpegs: list[bytes]) -> Tensor:
    """JPEGs to normalised images [B, 3, 224, 224]."""
    return normalised(np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]))
