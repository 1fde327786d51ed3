"""Between the vision tower and the projector: ``ln_vision``, then the Q-Former or joined patches.

Shapes: N images, P patches (+ 1 class token), V vision width, I image tokens, Q projector's input
width (the Q-Former's, or 4 V without one).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mgpt4_hpc.model.architecture import PATCHES_PER_TOKEN, Architecture
from mgpt4_hpc.model.lazy import garbage_collector_off

LN_VISION_EPS = 1e-5
"""The original's; transformers' ``post_layernorm`` has 1e-6, which moves the output by 9e-5."""


class QFormerConnector(nn.Module):
    """Learned queries read the image through cross-attention."""

    def __init__(self, arch: Architecture, *, attention: str = "sdpa") -> None:
        super().__init__()
        with garbage_collector_off():
            from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig
            from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        self.ln_vision = nn.LayerNorm(arch.vision_width, eps=LN_VISION_EPS)
        self.query_tokens = nn.Parameter(torch.zeros(1, arch.num_query_tokens, arch.qformer_width))
        config = Blip2QFormerConfig(
            hidden_size=arch.qformer_width,
            num_hidden_layers=arch.qformer_layers,
            num_attention_heads=arch.qformer_heads,
            intermediate_size=arch.qformer_mlp_width,
            encoder_hidden_size=arch.vision_width,
            cross_attention_frequency=arch.cross_attention_frequency,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager" if attention == "eager" else "sdpa",
        )
        self.qformer = Blip2QFormerModel(config)

    def forward(self, patches_NPV: torch.Tensor) -> torch.Tensor:
        """Features (N, I, Q) of the ViT's output (N, P + 1, V), class token included."""
        queries_NIQ = self.query_tokens.expand(len(patches_NPV), -1, -1)
        # Not by the model's own forward, which makes masks that hide nothing, and other ones while
        # a CUDA graph is recorded: slower kernels, and other bits.
        output = self.qformer.encoder(
            self.qformer.layernorm(queries_NIQ),
            attention_mask=None,
            encoder_hidden_states=self.ln_vision(patches_NPV),
            encoder_attention_mask=None,
            query_length=queries_NIQ.shape[1],
        )
        features: torch.Tensor = output.last_hidden_state
        return features


class PatchConnector(nn.Module):
    """Four neighbouring patches make one token; the class token is dropped (Llama-2 variant)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(arch.vision_width, eps=LN_VISION_EPS)

    def forward(self, patches_NPV: torch.Tensor) -> torch.Tensor:
        """Features (N, P / 4, 4 V) of the ViT's output (N, P + 1, V)."""
        normed_NPV: torch.Tensor = self.ln_vision(patches_NPV)[:, 1:]
        num_images, num_patches, width = normed_NPV.shape
        return normed_NPV.reshape(
            num_images, num_patches // PATCHES_PER_TOKEN, width * PATCHES_PER_TOKEN
        )


def make_identity(norm: nn.Module) -> None:
    """Weight 1 and bias 0, whatever it had: a norm that was never trained."""
    assert isinstance(norm, nn.LayerNorm)
    # New tensors, not in place: the old ones may be mapped from a file.
    norm.weight = nn.Parameter(torch.ones_like(norm.weight), requires_grad=False)
    norm.bias = nn.Parameter(torch.zeros_like(norm.weight), requires_grad=False)


def build_connector(arch: Architecture, *, attention: str = "sdpa") -> nn.Module:
    """The connector of that architecture, on the current default device."""
    return QFormerConnector(arch, attention=attention) if arch.qformer else PatchConnector(arch)


def load_connector(
    arch: Architecture, state: Mapping[str, torch.Tensor], *, attention: str = "sdpa"
) -> nn.Module:
    """The connector with its weights, in their own types, never initialised at random."""
    with torch.device("meta"):
        connector = build_connector(arch, attention=attention)
    connector.load_state_dict(state, strict=True, assign=True)
    return connector
