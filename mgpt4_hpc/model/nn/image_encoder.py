"""The frozen image side alone: vision tower and connector, without a language model.

Shapes: N images, C channels, H height, W width, I image tokens, Q projector's input width.
"""

from __future__ import annotations

import torch
from torch import nn

from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.nn.connector import load_connector, make_identity
from mgpt4_hpc.model.nn.performance.cuda_graphs import ReplayedTowers
from mgpt4_hpc.model.nn.precision import autocast, cast_matmul_weights, compute_dtype
from mgpt4_hpc.model.nn.vision import load_vision
from mgpt4_hpc.model.weight_files.untrusted_files import load_error


def load_image_towers(
    bundle: Bundle,
    dtype: torch.dtype,
    *,
    ln_vision: str,
    attention: str,
    device: torch.device,
) -> tuple[nn.Module, nn.Module]:
    """Vision tower and connector on a device; arguments as ``build_model``'s.

    Raises:
        WeightsError: if timm, transformers or torch cannot build or fill them.
    """
    arch = bundle.architecture
    try:
        vision = load_vision(arch, bundle.vision_state(), attention=attention)
        connector = load_connector(arch, bundle.qformer_state(), attention=attention)
    except Exception as error:
        raise load_error(f"the vision side of {bundle.path}", error) from error
    if ln_vision == "identity" and not arch.qformer:
        make_identity(connector.get_submodule("ln_vision"))
    for tower in (vision, connector):
        cast_matmul_weights(tower, dtype)
        tower.to(device)
    return vision, connector


def encode_with(
    vision: nn.Module, connector: nn.Module, dtype: torch.dtype, pixels_NCHW: torch.Tensor
) -> torch.Tensor:
    """Features (N, I, Q) of normalised pixels."""
    with autocast(pixels_NCHW.device, dtype):
        features_NIQ: torch.Tensor = connector(vision(pixels_NCHW))
    return features_NIQ


class ImageEncoder:
    """What ``MiniGPT4.encode_images`` computes, to the bit, without the rest of the model.

    Args:
        bundle: the weights.
        precision: of the matrix products: ``fp32``, ``bf16`` or ``fp16``.
        ln_vision, attention: as ``build_model``'s.
        device: for everything.
        cuda_graphs: replay the towers as one CUDA graph where there is a GPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str,
        ln_vision: str,
        attention: str,
        device: torch.device,
        cuda_graphs: bool = True,
    ) -> None:
        self._dtype = compute_dtype(precision)
        self._vision, self._connector = load_image_towers(
            bundle, self._dtype, ln_vision=ln_vision, attention=attention, device=device
        )
        for tower in (self._vision, self._connector):
            tower.requires_grad_(False).eval()
        self._replayed = ReplayedTowers(self._encode) if cuda_graphs else None

    @torch.no_grad()
    def __call__(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Features (N, I, Q) of normalised pixels on the device."""
        if self._replayed is not None and pixels_NCHW.is_cuda:
            return self._replayed(pixels_NCHW)
        return self._encode(pixels_NCHW)

    def _encode(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return encode_with(self._vision, self._connector, self._dtype, pixels_NCHW)
