"""Tests of ``data/sources/contact_sheet.py``."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from mgpt4_hpc.data.sources.contact_sheet import wrap, write_contact_sheet
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.indexes import index_of
from tests.unit.data.worlds import jpeg, make_index


@pytest.mark.slow
def test_contact_sheet(tmp_path: Path) -> None:
    samples = [(jpeg(n, (300, 100)), f"caption {n} " * 40) for n in range(7)]
    index = index_of(tmp_path, [*samples, (b"no image", "bad")])
    chosen = write_contact_sheet(index, tmp_path / "sheet.png")
    assert chosen == list(range(8))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet.convert("RGB"))
        assert sheet.width > 6 * 224
        assert 2 * 224 < sheet.height < 3 * 400
    with Image.open(io.BytesIO(samples[0][0])) as image:
        middle = np.asarray(image.convert("RGB")).mean((0, 1))
    shown = pixels[12 + 75 : 12 + 75 + 74, 12:236].mean((0, 1))  # 300x100 becomes 224x75, centred
    assert np.abs(shown - middle).max() < 12
    first = (tmp_path / "sheet.png").read_bytes()
    write_contact_sheet(index, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "it.index", "sheet.png"]


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    index = make_index(tmp_path, 3)
    with pytest.raises(DataError, match="cannot write"):
        write_contact_sheet(index, tmp_path / "no" / "sheet.png")


@pytest.mark.parametrize(
    "text", ["", "short", "several words " * 30, "https://" + "a" * 500, "尾" * 90]
)
def test_wrapped_lines_fit(text: str) -> None:
    font = ImageFont.load_default(13)
    lines = wrap(text, font, 224, 4)
    assert 1 <= len(lines) <= 4
    assert all(font.getlength(line) <= 224 for line in lines)
    whole = "".join(lines).replace(" ", "")
    assert whole == text.replace(" ", "") or whole.endswith("...")
