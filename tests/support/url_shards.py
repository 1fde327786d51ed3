"""Shards whose samples know where their images came from, as img2dataset writes them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.data.worlds import jpeg, tar_bytes


def write_shards_with_urls(folder: Path) -> None:
    """Four samples in two shards, of http://x/0 to http://x/3."""
    folder.mkdir(parents=True)
    for shard in range(2):
        entries = []
        for number in (2 * shard, 2 * shard + 1):
            record = json.dumps({"url": f"http://x/{number}", "caption": "old"}).encode()
            entries += [(f"{number:03d}.jpg", jpeg(number)), (f"{number:03d}.json", record)]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(entries))
