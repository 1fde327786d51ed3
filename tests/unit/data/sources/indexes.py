"""An index over samples that are given as bytes."""

from __future__ import annotations

import json
from pathlib import Path

from mgpt4_hpc.data.index.index import ShardIndex, build_index
from tests.unit.data.worlds import tar_bytes


def index_of(folder: Path, samples: list[tuple[bytes, str]]) -> ShardIndex:
    entries = []
    for number, (image, caption) in enumerate(samples):
        entries += [
            (f"{number:04d}.jpg", image),
            (f"{number:04d}.json", json.dumps({"caption": caption}).encode()),
        ]
    (folder / "0.tar").write_bytes(tar_bytes(entries))
    build_index([folder / "0.tar"], folder / "it.index")
    return ShardIndex.open(folder / "it.index")
