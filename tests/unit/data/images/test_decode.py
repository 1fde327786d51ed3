"""Pixels: the same as Pillow's, whatever the file turns out to be."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mgpt4_hpc.data.images.decode import ImageError, decode_image, decode_rgb, shown_size
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


RAMP = np.linspace(0, 1, 16).reshape(4, 4)
SIXTEEN = [17 * step for step in range(16)]


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        (RAMP.astype(np.float32), 0),
        ((RAMP * 255).astype(np.float32), 1),
        ((RAMP * 65535).astype(np.float32), 1),
        ((RAMP * 1e9).astype(np.float32), 1),
        ((RAMP - 0.5).astype(np.float32), 1),
        (np.where(RAMP == 0, np.nan, RAMP).astype(np.float32), 0),
        ((RAMP * 255).astype(np.int32), 0),
        ((RAMP * 65535).astype(np.int32), 0),
        ((RAMP * 2_000_000_000).astype(np.int32), 1),
        ((RAMP * 65535).astype(np.uint16), 0),
    ],
)
def test_deep_and_float_values_are_scaled_not_clipped(values: np.ndarray, tolerance: int) -> None:
    shown = decode_rgb(encoded(Image.fromarray(values), "TIFF"))
    assert (shown[:, :, 0] == shown[:, :, 2]).all()
    assert np.abs(shown[:, :, 1].reshape(-1).astype(int) - SIXTEEN).max() <= tolerance


def test_twelve_bits_of_a_tiff_reach_white() -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF])  # 4095, 0, 2048, 4095
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, len(packed))]  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    data = head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode_rgb(data)[0, :, 0].tolist() == [255, 0, 128, 255]


LOGO = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
LOGO.paste((0, 0, 0, 255), (2, 2, 6, 6))
"""Black on a transparent ground."""


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("GIF", "RGBA"), ("TIFF", "RGBA"),
     ("TIFF", "LA"), ("TIFF", "PA"), ("AVIF", "RGBA"), ("TGA", "RGBA"), ("JPEG2000", "RGBA"),
     ("ICO", "RGBA")],
)  # fmt: skip
def test_transparency_lies_on_white_in_every_format(form: str, mode: str) -> None:
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    options |= {"sizes": [(8, 8)]} if form == "ICO" else {}
    pixels = decode_rgb(encoded(LOGO.convert(mode), form, **options)).astype(int)
    assert pixels[0, 0].min() >= 250  # AVIF is lossy
    assert pixels[3, 3].max() <= 8


def test_half_transparency_is_half_white() -> None:
    half = Image.new("RGBA", (2, 2), (200, 0, 100, 128))
    assert np.abs(decode_rgb(encoded(half, "PNG"))[0, 0].astype(int) - [227, 127, 177]).max() <= 1


def a_png(bits: int, colours: int, row: bytes, width: int, **chunks: bytes) -> bytes:
    """A PNG of one row, as Pillow itself would not write it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    middle = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + middle + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (a_png(8, 3, b"\0\1", 2, PLTE=bytes([0, 0, 0, 9, 9, 9]), tRNS=b"\0"), [255, 9]),
        (a_png(8, 0, bytes([0, 100]), 2, tRNS=b"\0\0"), [255, 100]),
        (a_png(2, 0, bytes([0b00011011]), 4, tRNS=b"\0\1"), [0, 255, 170, 255]),
        (a_png(8, 2, bytes([0, 0, 0, 9, 9, 9]), 2, tRNS=bytes(6)), [255, 9]),
        (a_png(16, 0, struct.pack(">2H", 0, 25600), 2, tRNS=b"\0\0"), [255, 100]),
        (a_png(16, 2, struct.pack(">6H", *[258] * 3, *[2560] * 3), 2,
               tRNS=struct.pack(">3H", *[258] * 3)), [255, 10]),
        (a_png(16, 4, struct.pack(">4H", 0, 0, 2560, 65535), 2), [255, 10]),
        (a_png(16, 6, struct.pack(">8H", *[0] * 4, *[2560] * 3, 65535), 2), [255, 10]),
    ],
    ids=["palette", "grey", "grey of 2 bits", "RGB", "grey of 16", "RGB of 16", "LA of 16",
         "RGBA of 16"],
)  # fmt: skip
def test_every_way_in_which_a_png_is_transparent(data: bytes, shown: list[int]) -> None:
    assert decode_rgb(data)[0, :, 0].tolist() == shown


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_what_a_viewer_shows(form: str) -> None:
    for orientation in range(11):  # 0 and from 9 on mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(a_picture(50, 40), form, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        pixels = decode_rgb(data)
        assert (pixels == np.asarray(upright)).all()
        with Image.open(io.BytesIO(data)) as image:
            assert shown_size(image) == pixels.shape[1::-1]


def test_broken_exif_is_survived_and_changes_no_pixel() -> None:
    plain = encoded(a_picture(50, 40), "JPEG", quality=95)
    for seed in range(50):
        noise = np.random.default_rng(seed).bytes(3 * seed)
        for exif in (noise, b"II*\0\x08\0\0\0" + noise, b"MM\0*\0\0\0\x08" + noise):
            length = struct.pack(">H", len(exif) + 8)
            broken = plain[:2] + b"\xff\xe1" + length + b"Exif\0\0" + exif + plain[2:]
            assert (decode_rgb(broken) == decode_rgb(plain)).all()


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
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read: save it as JPEG"),
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
