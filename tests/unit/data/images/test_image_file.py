"""Images that a user names: refused before they are decoded, with the reason and the fix."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.data.images.image_file import (
    list_pictures,
    picture_pixels,
    read_picture,
    require_few_pixels,
    thumbnail,
)
from mgpt4_hpc.errors import DataError
from tests.unit.data.worlds import jpeg


def test_a_file_that_is_missing_too_large_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg())
    assert read_picture(tmp_path / "cat.jpg") == jpeg()
    with pytest.raises(DataError, match=r"beside it lies cat\.jpg"):
        read_picture(tmp_path / "cat.jpeg")
    with pytest.raises(DataError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(DataError, match="images may have 0"):
        read_picture(tmp_path / "cat.jpg", max_bytes=10)


def test_pixels_are_counted_from_the_header_alone() -> None:
    header = jpeg(size=(300, 200))[:700]  # up to the first scan
    require_few_pixels(header, 60_000)
    with pytest.raises(DataError, match="the cat has 300x200 pixels"):
        require_few_pixels(header, 59_999, "the cat")
    require_few_pixels(b"no image", 1)  # the decoder refuses it
    with pytest.raises(DataError, match="the cat cannot be used"):
        picture_pixels(b"no image", 16, "the cat")


def test_a_thumbnail_keeps_its_shape() -> None:
    data = base64.b64decode(thumbnail(jpeg(size=(80, 40)), 20).partition(",")[2])
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (20, 10)


def test_a_folders_images_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        list_pictures(tmp_path)
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.PNG"]
