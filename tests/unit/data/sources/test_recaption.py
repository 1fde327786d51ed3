"""Other captions for shards: the right text for each image, whatever the list's format."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sources import recaption as module
from mgpt4_hpc.data.sources.caption_table import By
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.recaption_cases import run, shards_in
from tests.unit.data.worlds import encoded, jpeg, tar_bytes

NUM = 6


def rows(by: str) -> list[dict[str, object]]:
    """Captions of all samples but the last, one of a stranger, a repeated and two bad ones."""
    names = [f"http://x/{n}" if by == "url" else f"{n:03d}" for n in (0, 1, 2, 3, 4, 99, 0)]
    good = [{by: name, "caption": f"new é {n}"} for n, name in enumerate(names)]
    return [*good, {by: "http://x/5", "caption": "\u200b"}, {"caption": "nameless"}]


def write_list(folder: Path, kind: str, by: str) -> Path:
    path = folder / f"list.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows(by)), encoding="utf-8-sig")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows(by))) + "\n{broken\n")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, [by, "caption"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows(by))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {name: [row.get(name) for row in rows(by)] for name in (by, "caption")}
        parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("by", ["url", "key"])
def test_each_image_gets_its_caption(tmp_path: Path, kind: str, by: By) -> None:
    report, table = run(tmp_path, write_list(tmp_path, kind, by), by)
    assert (report.num_shards, report.num_samples, report.num_matched) == (2, NUM, NUM - 1)
    assert (table.report.num_captions, table.report.num_repeated) == (6, 1)
    assert sum(table.report.reasons.values()) == 2 + (kind == "jsonl")
    assert {(e.reason, e.count, e.example) for e in report.left_out} == {
        ("the list has no caption for it", 1, "005"),
        ("recaption keeps image, json and txt", 2, "000"),
    }
    build_index(
        sorted((tmp_path / "out").glob("*.tar")), tmp_path / "x.index", ScanOptions(decode=True)
    )
    index = ShardIndex.open(tmp_path / "x.index")
    reader = SampleReader([index])
    for n in range(index.num_samples):
        sample = reader.read(0, n)
        number = int(sample.key)
        assert (sample.images[0], sample.caption) == (jpeg(number), f"new é {number}")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["000.jpg", "000.json", "000.txt"]
        stored = tar.extractfile("000.json")
        assert stored is not None
        assert json.load(stored) == {"url": "http://x/0", "caption": "new é 0", "width": 9}


def test_size_letterboxes_in_white(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    wide = encoded(Image.new("RGB", (400, 200), "black"), "PNG")
    (folder / "00000.tar").write_bytes(tar_bytes([("1.png", wide), ("2.jpg", b"no image")]))
    listing = tmp_path / "list.jsonl"
    listing.write_text("\n".join(json.dumps({"key": str(n), "caption": "c"}) for n in (1, 2)))
    report, _ = run(tmp_path, listing, "key", size=224)
    assert report.num_matched == 1
    assert "cannot be decoded" in report.left_out[0].reason
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        stored = tar.extractfile("1.jpg")
        assert stored is not None
        pixels = np.asarray(Image.open(io.BytesIO(stored.read())))
    assert pixels.shape == (224, 224, 3)
    assert pixels[:50].min() > 250
    assert pixels[70:150].max() < 5


def test_what_is_done_stays_and_what_changed_is_done_again(tmp_path: Path) -> None:
    listing = write_list(tmp_path, "jsonl", "url")
    run(tmp_path, listing, "url")
    out = tmp_path / "out"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    run(tmp_path, listing, "url")
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before
    os.utime(tmp_path / "in" / "00001.tar", ns=(1, 1))
    run(tmp_path, listing, "url")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert [after[name] == before[name] for name in sorted(before)] == [True, False]
    with pytest.raises(DataError, match="was begun otherwise"):
        run(tmp_path, listing, "key")


KILLED = """
import os, sys
from pathlib import Path
from mgpt4_hpc.data.sources import recaption as module
writes, write = 0, module.tarfile.TarFile.addfile
def addfile(*arguments):
    global writes
    writes += 1
    if writes == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    write(*arguments)
module.tarfile.TarFile.addfile = addfile
from tests.unit.data.sources.recaption_cases import run
run(Path(sys.argv[2]), Path(sys.argv[3]), "url")
"""


def test_a_killed_one_leaves_no_half_shard(tmp_path: Path) -> None:
    listing = write_list(tmp_path, "jsonl", "url")
    shards_in(tmp_path / "in")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, "12", str(tmp_path), str(listing)]  # in the second
    repo = Path(module.__file__).parents[3]
    killed = subprocess.run(command, cwd=repo, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out.glob("*.tar")] == ["00000.tar"]
    run(tmp_path, listing, "url")
    assert [path.name for path in sorted(out.iterdir())] == [".recaption", "00000.tar", "00001.tar"]
    with tarfile.open(out / "00001.tar") as tar:
        assert len(tar.getnames()) == 6
