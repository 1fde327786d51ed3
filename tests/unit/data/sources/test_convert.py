"""Caption lists to parquet: rows, subsets, damage, memory, and what a kill leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mgpt4_hpc.data.sources.convert import Draw, convert_captions
from mgpt4_hpc.errors import DataError


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"url": f"https://a.org/{n}.jpg", "caption": f"picture {n}"} for n in range(count)]


def source(folder: Path, rows: object) -> Path:
    path = folder / "list.json"
    path.write_text(json.dumps(rows))
    return path


def written(out: Path) -> list[dict[str, str]]:
    tables = [parquet.read_table(path) for path in sorted(out.glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def test_all_rows_in_order_in_files_of_equal_length(tmp_path: Path) -> None:
    rows = rows_of(25)
    report = convert_captions(source(tmp_path, rows), tmp_path / "out", rows_per_file=10)
    assert report.files == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [parquet.read_metadata(tmp_path / "out" / name).num_rows for name in report.files] == [
        10,
        10,
        5,
    ]
    assert written(tmp_path / "out") == rows
    assert (report.num_rows, report.num_written, report.num_bad) == (25, 25, 0)
    kept = json.loads((tmp_path / "out" / "convert.json").read_text())
    assert kept["num_written"] == 25
    assert not (tmp_path / "out" / "bad_rows.jsonl").exists()


def test_bad_rows_are_counted_and_listed(tmp_path: Path) -> None:
    good = {"url": " http://a.org/1.jpg ", "caption": 'Ein "Bär" \U0001f43b', "extra": [1, {}]}
    bad: list[tuple[Any, str]] = [
        (17, "it is no object"),
        (["http://a.org", "x"], "it is no object"),
        (None, "it is no object"),
        ({"caption": "x"}, "it has no url"),
        ({"url": 3, "caption": "x"}, "it has no url"),
        ({"url": "http://a.org"}, "it has no caption"),
        ({"url": "http://a.org", "caption": None}, "it has no caption"),
        ({"url": "http://a.org", "caption": " \n"}, "its caption is empty"),
        ({"url": "ftp://a.org", "caption": "x"}, "its url is none of http or https"),
    ]
    src = source(tmp_path, [good, *(row for row, _ in bad), good])
    report = convert_captions(src, tmp_path / "out")
    stripped = {"url": "http://a.org/1.jpg", "caption": good["caption"]}
    assert written(tmp_path / "out") == [stripped, stripped]
    listed = (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
    found = [(entry["row"], entry["reason"]) for entry in map(json.loads, listed)]
    assert found == [(row, reason) for row, (_, reason) in enumerate(bad, start=1)]
    assert report.num_bad == len(bad) == sum(report.reasons.values()) == len(report.bad_rows)
    assert report.num_rows == 11


def test_bytes_that_are_no_utf8_spoil_their_row_alone(tmp_path: Path) -> None:
    src = tmp_path / "list.json"
    row = b'{"url": "http://a.org/1", "caption": "%s"}'
    captions = [b"caf\xc3\xa9", b"caf\xe9", b"\xff\xfe", "尾".encode(), b"\xe5\xb0"]
    src.write_bytes(b"[" + b", ".join(row % caption for caption in captions) + b"]")
    report = convert_captions(src, tmp_path / "out")
    assert [entry["caption"] for entry in written(tmp_path / "out")] == ["café", "尾"]
    assert report.reasons == {"its text is not UTF-8": 3}


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    src = source(tmp_path, rows_of(2))
    src.write_bytes(b"\xef\xbb\xbf\n " + src.read_bytes())
    convert_captions(src, tmp_path / "out")
    assert written(tmp_path / "out") == rows_of(2)


@pytest.mark.slow
def test_a_fraction_is_reproducible_and_nested(tmp_path: Path) -> None:
    rows = rows_of(20_000)
    src = source(tmp_path, rows)
    taken = {}
    for name, fraction, seed in [("a", 0.3, 1), ("b", 0.3, 1), ("c", 0.6, 1), ("d", 0.3, 2)]:
        report = convert_captions(src, tmp_path / name, fraction=fraction, seed=seed)
        taken[name] = {row["url"] for row in written(tmp_path / name)}
        assert report.num_written + report.num_left_out == report.num_rows == 20_000
        assert abs(report.num_written / 20_000 - fraction) < 0.02
    assert taken["a"] == taken["b"]
    assert taken["a"] < taken["c"]
    assert taken["a"] != taken["d"]


def test_the_draw_is_pinned() -> None:
    """The same rows on every machine and with every NumPy: these are the first of seed 42."""
    draw = Draw(0.3, 42)
    assert [row for row in range(30) if row in draw] == [0, 5, 9, 10, 11, 12, 20]
    later = [row for row in range(4096, 4126) if row in draw]
    assert later == [4099, 4106, 4107, 4112, 4114, 4117, 4118]
    assert all(row in Draw(1.0, 42) for row in range(100))


def test_a_bad_row_does_not_shift_the_draw(tmp_path: Path) -> None:
    rows: list[Any] = rows_of(1000)
    convert_captions(source(tmp_path, rows), tmp_path / "whole", fraction=0.5)
    rows[10] = None
    convert_captions(source(tmp_path, rows), tmp_path / "holed", fraction=0.5)
    whole = [row["url"] for row in written(tmp_path / "whole")]
    holed = [row["url"] for row in written(tmp_path / "holed")]
    assert holed == [url for url in whole if url != "https://a.org/10.jpg"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"url": "http://a.org", "caption": "x"}, {"url": "ht', "after row 1"),
        (b'[{"url": "http://a.org", "caption": "x"}', "after row 1"),
        (b'[{"url": "http://a.org", "caption": "x"} {"url": 1}]', "after row 1"),
        (b'{"url": "http://a.org", "caption": "x"}\n', "no JSON array: it begins with '{"),
        (b"<html>", "no JSON array"),
        (b"", "no JSON array"),
        (b"[]", "none of its 0 rows"),
        (b"[1, 2]", "2 rows: it is no object"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_what_is_no_list_leaves_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    src = tmp_path / "list.json"
    src.write_bytes(content)
    with pytest.raises(DataError) as caught:
        convert_captions(src, tmp_path / "out", rows_per_file=1)
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    src = source(tmp_path, rows_of(3))
    convert_captions(src, tmp_path / "out")
    with pytest.raises(DataError, match="is not an empty folder"):
        convert_captions(src, tmp_path / "out")
    with pytest.raises(DataError, match="No such file"):
        convert_captions(tmp_path / "nothing.json", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "out"]


IN_A_PROCESS = """
import re, sys
from pathlib import Path
from mgpt4_hpc.data.sources.convert import convert_captions
report = convert_captions(Path(sys.argv[1]), Path(sys.argv[2]), rows_per_file=int(sys.argv[3]))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(report.num_rows, int(peak.group(1)) // 1024)
"""


def write_large(path: Path, num_rows: int, caption_bytes: int) -> None:
    """In pieces, so that the test itself stays small."""
    piece = 5000
    row = json.dumps({"url": "https://a.org/1.jpg", "caption": "x" * caption_bytes})
    block = ", ".join([row] * piece)
    with path.open("w") as file:
        file.write("[")
        for number in range(num_rows // piece):
            file.write((", " if number else "") + block)
        file.write("]")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """Any step that held the whole list would need over 380 MB; the bound is 300."""
    src = tmp_path / "list.json"
    write_large(src, 160_000, 2000)
    assert src.stat().st_size > 320e6
    command = [sys.executable, "-c", IN_A_PROCESS, src, tmp_path / "out", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    src.unlink()
    num_rows, peak_mib = map(int, done.stdout.split())
    assert num_rows == 160_000
    assert 20 < peak_mib < 300


@pytest.mark.slow
@pytest.mark.parametrize("num_files", [1, 7])
def test_a_kill_leaves_nothing_under_the_final_name(tmp_path: Path, num_files: int) -> None:
    src = tmp_path / "list.json"
    write_large(src, 200_000, 20)
    command = [sys.executable, "-c", IN_A_PROCESS, src, tmp_path / "out", "2000"]
    process = subprocess.Popen(command)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.*/rows/*.parquet"))) < num_files:
        assert process.poll() is None
        assert time.monotonic() < until
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    source(tmp_path, rows_of(5))
    assert convert_captions(src, tmp_path / "out").num_written == 5
