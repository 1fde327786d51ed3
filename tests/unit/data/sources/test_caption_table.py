"""Tests of ``data/sources/caption_table.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.caption_table import build_table
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.recaption_cases import run


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"url": "x"}', "no JSON array"),
        ("a.json", '[{"url": "x", "caption": "y"}, {"ur', "cut short"),
        ("a.xlsx", "x", "no known kind"),
        ("a.jsonl", "\n", "has no caption"),
        ("a.csv", "link,text\nx,y\n", "has no url"),
        ("a.parquet", "x", "parquet"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        run(tmp_path, tmp_path / name, "url")
    with pytest.raises(DataError, match=f"does not exist; beside it lies {name}"):
        build_table(tmp_path / f"{name}x", "url", tmp_path / "table")
