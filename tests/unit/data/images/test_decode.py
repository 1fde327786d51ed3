"""Pixels: the same as Pillow's, whatever the file turns out to be."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from mgpt4_hpc.data.images.decode import ImageError, decode_image, decode_rgb
from tests.unit.data.worlds import encoded


def a_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    noise = rng.integers(0, 256, (max(2, height // 7), max(2, width // 5), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("subsampling", "quality", "progressive"),
    list(itertools.product((0, 1, 2), (30, 75, 95, 100), (False, True))),
)
def test_fast_and_slow_decoders_agree(subsampling: int, quality: int, progressive: bool) -> None:
    for width, height in ((224, 224), (101, 67), (1, 1), (3, 17), (16, 500)):
        data = encoded(
            a_picture(width, height), "JPEG",
            subsampling=subsampling, quality=quality, progressive=progressive,
        )  # fmt: skip
        assert (decode_rgb(data) == by_pillow(data)).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_jpegs_agree_with_pillow(mode: str) -> None:
    picture = a_picture(40, 30).convert(mode)
    data = encoded(picture if mode != "1" else picture.convert("L"), "JPEG")
    assert (decode_rgb(data) == by_pillow(data)).all()


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"),
     ("WEBP", "RGB"), ("BMP", "RGB"), ("GIF", "P"), ("TIFF", "CMYK")],
)  # fmt: skip
def test_files_of_another_kind_than_their_name(form: str, mode: str) -> None:
    data = encoded(a_picture(40, 30, mode), form)
    assert (decode_rgb(data) == by_pillow(data)).all()


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(data)[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(ramp), "PNG")
    assert decode_rgb(data)[:, :, 1].reshape(-1).tolist() == list(range(256))


def test_squash_is_pillows_bicubic() -> None:
    data = encoded(a_picture(300, 200), "JPEG", quality=95)
    expected = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC)
    assert (decode_image(data, 224) == np.asarray(expected).transpose(2, 0, 1)).all()


def test_the_right_size_is_not_touched() -> None:
    data = encoded(a_picture(224, 224), "JPEG", quality=95)
    pixels = decode_image(data, 224)
    assert pixels.flags.c_contiguous
    assert (pixels == by_pillow(data).transpose(2, 0, 1)).all()


def test_border_keeps_the_shape_on_white() -> None:
    pixels = decode_image(encoded(Image.new("RGB", (100, 50), "black"), "PNG"), 64, "border")
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:48] == 0).all()
    assert (pixels[:, 48:] == 255).all()
    assert decode_image(encoded(Image.new("RGB", (900, 1)), "PNG"), 8, "border").shape == (3, 8, 8)
    with pytest.raises(ValueError, match="squash, border"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "PNG"), 8, "crop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (b"<!doctype html><title>404</title>", "web page"),
        (b"  <html>", "web page"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "cannot be decoded"),
    ],
)
def test_what_is_no_image_says_so(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as first:
        decode_image(data, 8)
    # Reasons are counted, so the same fault must read the same: no memory address in it.
    assert "0x" not in str(first.value)


def test_cut_off_images_are_refused() -> None:
    for form in ("JPEG", "PNG"):
        data = encoded(a_picture(64, 64), form)
        with pytest.raises(ImageError):
            decode_image(data[: len(data) // 2], 8)


def test_bombs_are_not_decoded() -> None:
    header = encoded(Image.new("1", (4, 4)), "PNG")
    size = (40_000).to_bytes(4, "big")
    bomb = bytearray(header)
    bomb[16:24] = size + size
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="has 1600000000 pixels, too many to decode"):
        decode_image(bytes(bomb), 8)
