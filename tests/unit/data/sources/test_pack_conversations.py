"""Tests of ``data/sources/pack_conversations.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.pack_conversations import pack_conversations
from mgpt4_hpc.errors import DataError
from tests.unit.data.batching.conversations_cases import BAD, GOOD, IMAGE, chat, text
from tests.unit.data.worlds import jpeg


def test_other_files_give_the_same_shards(tmp_path: Path, images: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    records = [chat([IMAGE, text("What?")], [text("This.")], images=["1.jpg"])] * 2
    lines = tmp_path / "talk.jsonl"
    lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, records)), encoding="utf-8")
    inside = [{"bytes": jpeg(1), "path": "elsewhere.jpg"}]
    table = arrow.Table.from_pylist([{**record, "images": inside} for record in records])
    parquet.write_table(table, tmp_path / "talk.parquet")
    (tmp_path / "talk.json").write_text(json.dumps(records))
    made = []
    for name in ("talk.json", "talk.jsonl", "talk.parquet"):
        (shard,) = pack_conversations(tmp_path / name, tmp_path / f"{name}.d", images=images).shards
        made.append(shard.read_bytes())
    assert made[0] == made[1] == made[2]


def test_all_that_is_bad_is_named_at_once(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(GOOD[:2] + [record for record, _ in BAD]))
    with pytest.raises(DataError) as caught:
        pack_conversations(file, tmp_path / "out", images=images)
    lines = str(caught.value).split("\n  - ")[1:]
    assert len(lines) == len(BAD) and not (tmp_path / "out").exists()
    for number, (line, (_, wanted)) in enumerate(zip(lines, BAD, strict=True)):
        assert line.startswith(f"record {number + 2}") and wanted in line
    made = pack_conversations(file, tmp_path / "out", images=images, leave_out_bad=True)
    assert made.num_samples == 2 and len(made.bad) == len(BAD)
