"""What several tests around ``recaption`` share."""

from __future__ import annotations

import json
from pathlib import Path

from mgpt4_hpc.data.sources.caption_table import By, CaptionTable, build_table
from mgpt4_hpc.data.sources.recaption import RecaptionReport, begin_recaption, recaption, report_of
from tests.unit.data.worlds import jpeg, tar_bytes


def shards_in(folder: Path) -> list[Path]:
    """Two shards of three samples with urls; one has another member, one no json."""
    folder.mkdir()
    paths = []
    for shard in range(2):
        entries = []
        for n in range(3 * shard, 3 * shard + 3):
            record = json.dumps({"url": f"http://x/{n}", "caption": "old", "width": 9})
            entries += [(f"{n:03d}.jpg", jpeg(n)), (f"{n:03d}.json", record.encode())]
        entries.append((f"{3 * shard:03d}.cls", b"7"))
        paths.append(folder / f"{shard:05d}.tar")
        paths[-1].write_bytes(tar_bytes(entries))
    return paths


def run(
    tmp_path: Path, listing: Path, by: By, size: int | None = None
) -> tuple[RecaptionReport, CaptionTable]:
    shards = sorted((tmp_path / "in").glob("*.tar")) or shards_in(tmp_path / "in")
    out = tmp_path / "out"
    table = build_table(listing, by, begin_recaption(shards, listing, by, out, size))
    recaption(shards, table, out, size=size)
    return report_of(shards, table, out), table
