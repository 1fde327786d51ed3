"""Fixtures of several folders below."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.worlds import jpeg


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder
