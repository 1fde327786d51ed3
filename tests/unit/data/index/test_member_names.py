"""Tests of ``data/index/member_names.py``."""

from __future__ import annotations

from mgpt4_hpc.data.index.member_names import name_fault, show, split_name


def test_names_are_split_as_webdataset_does() -> None:
    assert split_name(b"a/b.c/d.seg.JPG") == (b"a/b.c/d", b"seg.jpg")
    assert split_name(b"./x.jpg") == (b"x", b"jpg")
    assert split_name(b"a/b") == (b"a/b", b"")
    assert split_name(b"a/.jpg") == (b"a/.jpg", b"")


def test_names_that_are_refused() -> None:
    assert name_fault(b"\xff\xfe") == "its name is not UTF-8"
    assert name_fault("æ/ø".encode()) == ""
    assert name_fault(b"a/../b") == "its name points outside the shard"
    assert show(b"\xff\n") == "\\\\xff\\n"
