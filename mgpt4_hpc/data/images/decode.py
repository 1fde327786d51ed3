"""From a compressed image to the uint8 pixels that the model's preprocessing starts from.

Shapes: C channels (3, RGB), H height, W width.

simplejpeg decodes ordinary JPEGs 1.5 times faster than Pillow and to the same pixels; Pillow
takes everything else. Scaled decoding is not used: it changes pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Resize = Literal["squash", "border"]

RESIZE_MODES: tuple[Resize, ...] = ("squash", "border")
_MAX_PIXELS = 100_000_000
_FAST_SUBSAMPLINGS = {"444", "422", "420", "440"}


class ImageError(Exception):
    """Bytes that are no usable image; the message says why."""


def decode_image(
    data: bytes, size: int, resize: Resize = "squash", out: Pixels | None = None
) -> Pixels:
    """Decode and resize one image: uint8[3, size, size], RGB.

    Args:
        data: JPEG, PNG, WebP or whatever else Pillow reads; the first frame of an animation.
        size: side of the square in pixels.
        resize: ``squash`` is bicubic to the square without regard to the aspect ratio, as
            MiniGPT-4's preprocessing; ``border`` keeps the ratio and pads with white, as
            img2dataset's default.
        out: uint8[3, size, size] to write to (a batch's row); a new array by default.

    Raises:
        ImageError: if it cannot be decoded.
    """
    pixels_HWC = decode_rgb(data)
    height, width = pixels_HWC.shape[:2]
    if (height, width) != (size, size):
        pixels_HWC = _resize(pixels_HWC, size, resize)
    if out is None:
        out = np.empty((3, size, size), dtype=np.uint8)
    np.copyto(out, pixels_HWC.transpose(2, 0, 1))
    return out


def decode_rgb(data: bytes) -> Pixels:
    """Decode one image at its own size: uint8[H, W, 3]. Raises ImageError."""
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colour, subsampling = simplejpeg.decode_jpeg_header(data)
            if (
                colour == "YCbCr"
                and subsampling in _FAST_SUBSAMPLINGS
                and height * width <= _MAX_PIXELS
            ):
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
                return pixels
        except (ValueError, MemoryError):
            pass  # Pillow decides whether it is an image, and words the reason
    return _decode_with_pillow(data)


def check_image(data: bytes) -> None:
    """Raise ImageError unless ``data`` decodes."""
    decode_rgb(data)


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF, palette transparency: pixels are fine
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > _MAX_PIXELS:
                    raise ImageError(f"its image has {width}x{height} pixels, too many to decode")
                return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders of foreign bytes raise anything
        raise ImageError(_describe(data, error)) from None


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 or 32 bits a pixel: Pillow would clip, not scale
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.max(initial=0) > 255:
            grey_HW = grey_HW >> 8
        grey = np.clip(grey_HW, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _resize(pixels_HWC: Pixels, size: int, resize: Resize) -> Pixels:
    image = Image.fromarray(pixels_HWC)
    if resize == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    if resize == "border":
        width, height = image.size
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (size, size), (255, 255, 255))
        resized = image.resize(inner, Image.Resampling.BICUBIC)
        canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return np.asarray(canvas)
    raise ValueError(f"resize is {resize!r}; it must be one of {', '.join(RESIZE_MODES)}")


def _describe(data: bytes, error: Exception) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "its image is a web page, not an image"
    if isinstance(error, UnidentifiedImageError):  # Pillow's text names a memory address
        return "its image cannot be decoded: it is of no known format, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):  # its text speaks of attacks
        found = re.search(r"\d+", str(error))
        return f"its image has {found[0] if found else 'far too many'} pixels, too many to decode"
    return f"its image cannot be decoded: {type(error).__name__}: {error}"[:200]
