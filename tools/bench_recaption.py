"""How fast captions are joined to shards, and in how much memory.

    python tools/bench_recaption.py [--rows 1000000] [--shards 100] [--json]

Writes a list of captions (JSON Lines) and shards whose images are a few bytes, so that the join is
measured and not the disk, in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mgpt4_hpc.data.sources.caption_table import build_table
from mgpt4_hpc.data.sources.recaption import begin_recaption, recaption, report_of

_IMAGE = b"\xff\xd8\xff" + bytes(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), asked.rows, asked.shards)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name:>24}  {value:,.0f}" for name, value in found.items()))


def measure(folder: Path, rows: int, num_shards: int) -> dict[str, float]:
    """Rows and samples per second of processor time; the largest resident size, in MiB."""
    captions, shards = folder / "captions.jsonl", write_all(folder, rows, num_shards)
    out = folder / "out"
    began = time.process_time()
    table = build_table(captions, "url", begin_recaption(shards, captions, "url", out, None))
    built = time.process_time()
    recaption(shards, table, out)
    ended = time.process_time()
    report = report_of(shards, table, out)
    assert report.num_matched == report.num_samples == rows
    return {
        "rows": rows,
        "shards": num_shards,
        "table_rows_per_core_s": rows / (built - began),
        "joined_samples_per_core_s": rows / (ended - built),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def write_all(folder: Path, rows: int, num_shards: int) -> list[Path]:
    """The list, in another order than the shards, and the shards."""
    (folder / "in").mkdir()
    with (folder / "captions.jsonl").open("w") as file:
        for row in range(rows):
            number = row * 7919 % rows if rows % 7919 else row
            record = {"url": url(number), "caption": f"a picture of number {number} and more words"}
            file.write(json.dumps(record) + "\n")
    shards = []
    for shard in range(num_shards):
        shards.append(folder / "in" / f"{shard:05d}.tar")
        with tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * rows // num_shards, (shard + 1) * rows // num_shards):
                record = json.dumps({"url": url(number), "caption": "old"}).encode()
                for suffix, data in (("jpg", _IMAGE), ("json", record)):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return shards


def url(number: int) -> str:
    """The address of an image."""
    return f"https://images.example.org/collection/{number % 977}/{number:09d}.jpg"


if __name__ == "__main__":
    main()
