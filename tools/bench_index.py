"""How fast shards are indexed, on a warm cache.

    python tools/bench_index.py --json

Makes shards like img2dataset's (224 px JPEGs of ~20 KB with json and txt), once with plain ustar
headers and once with the pax headers that webdataset's writer adds, and reports, per second of
processor time, so that other work on the machine counts little:

`samples_per_s`, `pax_samples_per_s`: without --verify, best of --rounds, and their medians;
`verify_ratio`: the speed with --verify against a bare loop of pread + CRC32 (Python's zlib) over
the same bytes, taken in turns in the same run, best of --rounds each; `verify_ratio_same_crc`: the
same with the faster CRC32 that we use in the bare loop too; `tarfile_samples_per_s`: what Python's
tarfile needs to list the same members.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from zlib_ng import zlib_ng

from mgpt4_hpc.data.index.scan import scan_shard
from mgpt4_hpc.data.tar.header import BLOCK


def make_shard(path: Path, num_samples: int, *, pax: bool) -> None:
    """Of both kinds; the pax headers hold times of as many digits as ``time.time()`` gives."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC).save(
        data, "JPEG", quality=95
    )
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(num_samples):
            key, caption = f"{number:09d}", f"a photo of thing number {number}"
            record = {"url": "https://example.org/" + "x" * 60, "caption": caption, "key": key}
            record |= {"status": "success", "width": 224, "height": 224, "sha256": "0" * 64}
            for name, content in (
                ("jpg", data.getvalue()),
                ("json", json.dumps(record).encode()),
                ("txt", caption.encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                info.mtime = 1_700_000_000 + number + rng.random() if pax else 0
                tar.addfile(info, io.BytesIO(content))


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def bare_loop(path: Path, spans: list[tuple[int, int]], crc32: Callable[[bytes], int]) -> None:
    fd = os.open(path, os.O_RDONLY)
    for offset, length in spans:
        crc32(os.pread(fd, length, offset))
    os.close(fd)


def list_with_tarfile(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len(tar.getmembers())


def measure(folder: Path, num_samples: int, rounds: int) -> dict[str, float | int]:
    plain, pax = folder / "plain.tar", folder / "pax.tar"
    make_shard(plain, num_samples, pax=False)
    make_shard(pax, num_samples, pax=True)
    scan = scan_shard(plain, plain.name)
    assert len(scan.keys) == num_samples
    begins = (scan.blocks.astype(np.int64) * BLOCK).reshape(-1).tolist()
    spans = list(zip(begins, scan.lengths.reshape(-1).tolist(), strict=True))
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in (
            ("plain", lambda: scan_shard(plain, "plain.tar")),
            ("pax", lambda: scan_shard(pax, "pax.tar")),
            ("bare", lambda: bare_loop(plain, spans, zlib.crc32)),
            ("bare_ng", lambda: bare_loop(plain, spans, zlib_ng.crc32)),
            ("verify", lambda: scan_shard(plain, "plain.tar", verify=True)),
        ):
            times.setdefault(name, []).append(seconds(work))
    best = {name: min(values) for name, values in times.items()}
    return {
        "samples": num_samples,
        "bytes_per_sample": plain.stat().st_size // num_samples,
        "samples_per_s": round(num_samples / best["plain"]),
        "pax_samples_per_s": round(num_samples / best["pax"]),
        "samples_per_s_median": round(num_samples / statistics.median(times["plain"])),
        "pax_samples_per_s_median": round(num_samples / statistics.median(times["pax"])),
        "tarfile_samples_per_s": round(num_samples / seconds(lambda: list_with_tarfile(plain))),
        "verify_samples_per_s": round(num_samples / best["verify"]),
        "bare_samples_per_s": round(num_samples / best["bare"]),
        "verify_ratio": round(best["bare"] / best["verify"], 3),
        "verify_ratio_same_crc": round(best["bare_ng"] / best["verify"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.samples, options.rounds)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
