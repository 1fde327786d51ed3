"""From a compressed image to the uint8 pixels that the model's preprocessing starts from.

Shapes: C channels (3, RGB), H height, W width.

simplejpeg decodes ordinary JPEGs 1.5 times faster than Pillow and to the same pixels; Pillow
takes everything else. Scaled decoding is not used: it changes pixels.

Every reader of images (training, encoding, evaluation, chat, thumbnails) gets what a viewer shows:
turned as the EXIF orientation asks, transparency laid on white, 16-bit and float values scaled to
8 bits. This module alone decides that.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Resize = Literal["squash", "border"]

RESIZE_MODES: tuple[Resize, ...] = ("squash", "border")
_MAX_PIXELS = 100_000_000
_FAST_SUBSAMPLINGS = {"444", "422", "420", "440"}
_EXIF = b"Exif\0\0"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright (EXIF 2.32, tag 0x0112); 1 is upright."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TIFF_BITS = 258
_WHITE_OF_FEW_BITS = {"1": 1, "L;2": 3, "L;4": 15}


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
    if data[:2] == b"\xff\xd8" and not _is_turned(data):
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


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image, as ``decode_rgb`` would return it; decodes nothing."""
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns a TIFF's size
    return (height, width) if turned else (width, height)


def _is_turned(jpeg: bytes) -> bool:
    """Whether a JPEG has an orientation other than upright: simplejpeg does not look at it."""
    if _EXIF not in jpeg:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(jpeg)) as image:
                return _orientation(image) != 1
    except Exception:  # noqa: BLE001 - the decoder words the reason
        return False


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - damaged EXIF raises anything; the pixels may be fine
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Pixels:
    _scale_transparent_colour(image)
    image.load()
    turn = _TURNS.get(_orientation(image))  # a TIFF was turned as it was loaded
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow would clip, not scale
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    return np.array(image, dtype=np.uint8)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits, or floats, in proportion as 8 bits: mode L.

    White is the largest value of the smallest usual range that holds all pixels: 1 (floats only),
    255, 65,535 (or what a TIFF's bits a sample allow), else the largest value itself. Values below
    0 make the smallest one black. What is not finite is black.
    """
    values_HW = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    transparent = image.info.get("transparency")
    hidden_HW = values_HW == transparent if isinstance(transparent, int) else None
    values_HW -= min(0.0, values_HW.min(initial=0.0))
    most = values_HW.max(initial=0.0)
    if most <= 1 and image.mode == "F":
        grey_HW = values_HW * 255
    elif most <= 255:
        grey_HW = values_HW
    elif most < 2**16:
        # As Pillow takes the upper byte of each colour of a 16-bit RGB.
        grey_HW = values_HW / 2 ** (_bits_a_sample(image) - 8)
    else:
        grey_HW = values_HW * (255 / most)
    if hidden_HW is not None:
        grey_HW[hidden_HW] = 255
    return Image.fromarray(grey_HW.clip(0, 255).astype(np.uint8))


def _bits_a_sample(image: Image.Image) -> int:
    """9 to 16: a TIFF may hold 12 bits in values of 16."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_TIFF_BITS, (16,))
    return bits[0] if isinstance(bits, tuple) and 9 <= bits[0] <= 16 else 16


def _scale_transparent_colour(image: Image.Image) -> None:
    """Bring a PNG's transparent colour (tRNS) from the file's bits to the 8 that its pixels get."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", [])
    if image.format != "PNG" or not tiles or image.mode == "I;16":
        return
    raw_mode = tiles[0].args
    if isinstance(colour, tuple):
        image.info["transparency"] = tuple(
            value >> 8 if raw_mode == "RGB;16B" else value for value in colour
        )
    elif isinstance(colour, int) and raw_mode in _WHITE_OF_FEW_BITS:
        image.info["transparency"] = colour * 255 // _WHITE_OF_FEW_BITS[raw_mode]


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
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "its image is HEIC, which is not read: save it as JPEG, PNG or WebP"
    if isinstance(error, UnidentifiedImageError):  # Pillow's text names a memory address
        return "its image cannot be decoded: it is of no known format, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):  # its text speaks of attacks
        number = re.search(r"\d+", str(error))
        return f"its image has {number[0] if number else 'far too many'} pixels, too many to decode"
    return f"its image cannot be decoded: {type(error).__name__}: {error}"[:200]
