"""Tests of ``data/index/left_out.py``."""

from __future__ import annotations

from pathlib import Path

from tests.unit.data.scanning import scan
from tests.unit.data.worlds import jpeg


def test_whatever_is_left_out_is_counted_with_an_example(tmp_path: Path) -> None:
    entries = [
        *[(f"v1.{n}.{kind}", jpeg()) for n in range(3) for kind in ("jpg", "txt")],
        ("x/v2.0.PNG", jpeg()),
        ("phone.HEIC", jpeg()),
        ("logo.svg", b"<svg/>"),
        ("readme", b"x"),
        ("x/.DS_Store", b"x"),
        ("._a.jpg", b"x"),
        ("a.jpg", jpeg()),
        ("a.txt", b"a cat"),
        ("a.cls", b"7"),
        ("b.cls", b"7"),
        ("a.tif", jpeg()),
    ]
    result = scan(tmp_path, entries)
    assert result.keys == [b"a"]
    assert not result.quarantined
    dotted = "its name has a dot before the extension, where webdataset ends the key"
    assert {(e.reason, e.extension): (e.count, e.example) for e in result.left_out} == {
        (dotted, "jpg"): (3, "v1.0.jpg"),
        (dotted, "txt"): (3, "v1.0.txt"),
        (dotted, "png"): (1, "x/v2.0.PNG"),
        ("its image format is not read", "heic"): (1, "phone.HEIC"),
        ("its image format is not read", "svg"): (1, "logo.svg"),
        ("its name has no extension", ""): (1, "readme"),
        ("its name begins with a dot", ""): (2, "x/.DS_Store"),
        ("training reads no such members", "cls"): (2, "a.cls"),
        ("its sample has another image", "tif"): (1, "a.tif"),
    }
    assert result.num_ignored + 2 == len(entries)
