"""What several tests around ``recaption`` share."""

from __future__ import annotations

import json
from pathlib import Path

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
