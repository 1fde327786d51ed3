"""From stored pixels to what the vision tower was trained on.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from functools import cache

import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per channel (red, green, blue), of values in 0..1; CLIP's, which EVA-CLIP and BLIP-2 kept."""


def normalise(images_NCHW: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """uint8 pixels to normalised float32, on ``device`` (where the images are, if None).

    Bytes travel to the device, not floats: a quarter of the copy.

    Raises:
        TypeError: if the images are not uint8.
    """
    if images_NCHW.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, not {images_NCHW.dtype}")
    device = images_NCHW.device if device is None else torch.device(device)
    pixels = images_NCHW.to(device, non_blocking=True).float().div_(255.0)
    mean_1C11, std_1C11 = _constants(device)
    return pixels.sub_(mean_1C11).div_(std_1C11)


@cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, copied to a device once: each such copy waits for it."""
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)
    return mean, std
