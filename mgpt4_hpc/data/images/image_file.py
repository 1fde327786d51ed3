"""Images that a user names: checked before they are decoded, refused with a reason."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from mgpt4_hpc.data.images.decode import ImageError, Pixels, decode_image, decode_rgb
from mgpt4_hpc.data.images.formats import READ, suffix_of
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import beside

MAX_PICTURE_BYTES = 50 * 2**20
"""Size of a file beyond which it is not even read."""


def read_picture(path: Path, *, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """The bytes of a picture's file.

    Raises:
        DataError: if there is none, or it is larger than any picture.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise DataError(f"{path} is a folder, not an image", fix="name the image in it")
        if size > max_bytes:
            raise DataError(
                f"{path} has {size / 2**20:.0f} MiB, images may have {max_bytes / 2**20:.0f}",
                fix="save a smaller copy: the model looks at a few hundred pixels a side anyway",
            )
        return path.read_bytes()
    except OSError as error:
        near = beside(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"cannot read the image {path}: {error.strerror}{near}") from error


def picture_pixels(data: bytes, size: int, name: str = "the image") -> Pixels:
    """uint8[3, size, size] of a picture, squashed to the square as in training.

    Width and height are read before anything is decoded, so a picture that would fill the memory
    (a decompression bomb) costs nothing.

    Raises:
        DataError: if it is none, or has too many pixels.
    """
    try:
        return decode_image(data, size)
    except ImageError as error:
        raise DataError(
            f"{name} cannot be used: {error}", fix="give a JPEG, PNG or WebP of ordinary size"
        ) from None


def require_few_pixels(data: bytes, max_pixels: int, name: str = "the image") -> None:
    """Refuse a picture by what its header says; nothing is decoded, and no header is no fault.

    Raises:
        DataError: if width times height is above ``max_pixels``.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        size = f"{width}x{height}"
    except Image.DecompressionBombError:
        width, height, size = max_pixels + 1, 1, "far too many"
    except Exception:  # noqa: BLE001 - the decoder words the reason
        return
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {size} pixels, images may have {max_pixels / 1e6:g} million",
            fix="save a smaller copy: the model looks at a few hundred pixels a side anyway",
        )


def thumbnail(data: bytes, side: int) -> str:
    """A small JPEG at the picture's own aspect ratio, as a data URI.

    Raises:
        ImageError: if it cannot be decoded.
    """
    image = Image.fromarray(decode_rgb(data))
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def list_pictures(folder: Path) -> list[Path]:
    """Picture files directly in a folder, by name.

    Raises:
        DataError: if there is none.
    """
    pictures = sorted(path for path in folder.iterdir() if suffix_of(path.name) in READ)
    if not pictures:
        raise DataError(
            f"{folder} holds no images",
            fix=f"it must hold files with one of .{', .'.join(READ)}",
        )
    return pictures
