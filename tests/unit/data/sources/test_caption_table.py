"""Tests of ``data/sources/caption_table.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.caption_table import By, CaptionTable, build_table
from mgpt4_hpc.data.sources.recaption import RecaptionReport, begin, recaption, report_of
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.recaption_cases import shards_in


def run(
    tmp_path: Path, listing: Path, by: By, size: int | None = None
) -> tuple[RecaptionReport, CaptionTable]:
    shards = sorted((tmp_path / "in").glob("*.tar")) or shards_in(tmp_path / "in")
    out = tmp_path / "out"
    table = build_table(listing, by, begin(shards, listing, by, out, size))
    recaption(shards, table, out, size=size)
    return report_of(shards, table, out), table


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
