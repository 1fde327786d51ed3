"""Tests of ``data/images/formats.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.data.scanning import scan
from tests.unit.data.worlds import encoded, jpeg


@pytest.mark.parametrize(
    ("extension", "form"),
    [("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("TIFF", "TIFF"), ("jfif", "JPEG"),
     ("JPE", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("ppm", "PPM"), ("JPEG", "JPEG")],
)  # fmt: skip
def test_images_of_other_formats_are_samples(tmp_path: Path, extension: str, form: str) -> None:
    image = encoded(Image.new("RGB", (8, 8), "red"), form)
    pairs = [("a.txt", b"a cat"), (f"a.{extension}", image)]
    for entries in (pairs, pairs[::-1]):
        result = scan(tmp_path, entries, decode=True)
        assert (result.keys, result.quarantined, result.left_out) == ([b"a"], [], [])
    # Beside an ordinary image it is something else, and changes no index that was made before.
    mask = scan(tmp_path, [*pairs, ("a.jpg" if extension != "JPEG" else "b.jpg", jpeg())])
    assert mask.keys == [b"a"]
    twice = scan(tmp_path, [*pairs, ("a.tga", image)])
    assert bool(twice.keys) == (extension == "JPEG")
