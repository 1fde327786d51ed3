"""Drawing: a scene to 224x224 pixels, and pixels to a JPEG.

The masks are computed here with IEEE arithmetic on a grid of sub-pixels instead of by a drawing
library, so that the pixels depend on no library's version; only the JPEG encoder remains.
"""

from __future__ import annotations

import io
import math
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toy_world.scenes import COLUMNS, ROWS, SHAPES, Scene

IMAGE_SIZE = 224
PATCH_SIZE = 32
GRID = IMAGE_SIZE // PATCH_SIZE
JPEG_QUALITY = 75
SUBPIXELS = 4

DIAMETER_PX = {"small": (33, 35), "medium": (54, 57), "large": (78, 81)}
CENTRES_PX = (48, 112, 176)  # in the middle of a patch, which is easier to see for a small ViT
JITTER_PX = 3
COLOUR_JITTER = 10

COLOUR_RGB = {
    "red": (215, 35, 35),
    "green": (35, 150, 55),
    "blue": (35, 70, 215),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 25),
    "purple": (125, 45, 165),
    "pink": (250, 140, 195),
    "cyan": (50, 205, 220),
}
BACKGROUND_RGB = {
    "white": (240, 240, 240),
    "grey": (135, 135, 135),
    "black": (25, 25, 25),
    "beige": (215, 195, 160),
}

# The ten corners of a five-pointed star, rounded so that no platform's sine matters.
STAR = tuple(
    (
        round((1.0, 0.42)[corner % 2] * math.sin(math.pi * corner / 5), 6),
        round(-(1.0, 0.42)[corner % 2] * math.cos(math.pi * corner / 5), 6),
    )
    for corner in range(10)
)
TRIANGLE = ((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75))

Pixels = NDArray[np.uint8]
Mask = NDArray[np.float64]


def _inside_polygon(
    x: Mask, y: Mask, corners: tuple[tuple[float, float], ...]
) -> NDArray[np.bool_]:
    """Even-odd rule for the points (x, y)."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _inside(shape: str, x: Mask, y: Mask) -> NDArray[np.bool_]:
    """Which points of the square [-1, 1]^2 belong to `shape`; y points down."""
    if shape == "circle":
        return x * x + y * y <= 1.0
    if shape == "ring":
        squared = x * x + y * y
        return (squared <= 1.0) & (squared >= 0.3)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.88
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1.0)
    if shape == "triangle":
        return _inside_polygon(x, y, TRIANGLE)
    if shape == "star":
        return _inside_polygon(x, y, STAR)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@cache
def shape_mask(shape: str, diameter_px: int) -> Mask:
    """[diameter, diameter] share of each pixel that `shape` covers, 0 to 1."""
    count = diameter_px * SUBPIXELS
    points = (np.arange(count) + 0.5) / count * 2.0 - 1.0
    inside = _inside(shape, points[None, :], points[:, None])
    return inside.reshape(diameter_px, SUBPIXELS, diameter_px, SUBPIXELS).mean(axis=(1, 3))


@cache
def pattern_mask(pattern: str) -> Mask:
    """[224, 224] where the background is slightly darker, 0 or 1."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    if pattern == "striped":
        mask = (y // 16) % 2 == 1
    elif pattern == "checked":
        mask = ((y // 32) + (x // 32)) % 2 == 1
    elif pattern == "dotted":
        mask = (y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 <= 36
    else:
        mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    return mask.astype(np.float64)


def _jittered(rng: random.Random, rgb: tuple[int, int, int]) -> Mask:
    return np.array(
        [channel + (2.0 * rng.random() - 1.0) * COLOUR_JITTER for channel in rgb], dtype=np.float64
    )


def draw(scene: Scene, rng: random.Random) -> tuple[Pixels, NDArray[np.int8]]:
    """Pixels [224, 224, 3] and, per patch [7, 7], the index of the object seen there (-1: none).

    A patch belongs to the object that covers most of it, if that is more than a tenth.
    """
    background = _jittered(rng, BACKGROUND_RGB[scene.background])
    canvas = background - 9.0 * pattern_mask(scene.pattern)[:, :, None]
    cover = np.zeros((len(scene.things), IMAGE_SIZE, IMAGE_SIZE))
    for index, thing in enumerate(scene.things):  # the largest first, so that none is hidden
        low, high = DIAMETER_PX[thing.size]
        diameter = low + int(rng.random() * (high - low + 1))
        top, left = (
            CENTRES_PX[cell] - diameter // 2 + int((2.0 * rng.random() - 1.0) * (JITTER_PX + 1))
            for cell in (ROWS.index(thing.row), COLUMNS.index(thing.column))
        )
        y0, y1 = max(top, 0), min(top + diameter, IMAGE_SIZE)
        x0, x1 = max(left, 0), min(left + diameter, IMAGE_SIZE)
        mask = shape_mask(thing.shape, diameter)[y0 - top : y1 - top, x0 - left : x1 - left]
        area = canvas[y0:y1, x0:x1]
        area += mask[:, :, None] * (_jittered(rng, COLOUR_RGB[thing.colour]) - area)
        cover[:, y0:y1, x0:x1] *= 1.0 - mask
        cover[index, y0:y1, x0:x1] = mask
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    shares = cover.reshape(-1, GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(2, 4))
    owner = np.where(shares.max(axis=0) > 0.1, shares.argmax(axis=0), -1)
    return pixels, owner.astype(np.int8)


def encode_jpeg(pixels: Pixels) -> bytes:
    """JPEG bytes of pixels [H, W, 3]; 4:2:0, optimised Huffman tables to save space."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", optimize=True
    )
    return buffer.getvalue()
