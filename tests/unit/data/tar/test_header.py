"""Tests of ``data/tar/header.py``."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.unit.data.tar.walking import WINDOWS, listed, walk
from tests.unit.data.worlds import members, tar_bytes


def test_ustar_prefix_and_directories_and_gnu_sizes(tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "e" * 60 + "/000000001.jpg"
    data = tar_bytes([(long, b"abc")], tarfile.USTAR_FORMAT)
    assert listed(walk(data, tmp_path))[0][0] == long

    folder = io.BytesIO()
    with tarfile.open(fileobj=folder, mode="w") as tar:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    listing = walk(folder.getvalue(), tmp_path)
    assert not listing.names
    assert not listing.faults

    header = bytearray(tar_bytes([("1.jpg", b"abc")])[:512])
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")  # base 256
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    listing = walk(bytes(header) + b"abc".ljust(512, b"\0") + bytes(1024), tmp_path)
    assert listed(listing) == [("1.jpg", 512, 3)]


def test_a_broken_pax_header_spoils_only_its_member(tmp_path: Path) -> None:
    data = bytearray(tar_bytes([("ä" * 80 + ".jpg", b"1"), ("2.jpg", b"2")], tarfile.PAX_FORMAT))
    at = data.index(b"path=")
    data[at - 4 : at] = b"999 "
    listing = walk(bytes(data), tmp_path)
    assert [name for name, _, _ in listed(listing)] == ["2.jpg"]
    assert "pax header" in listing.faults[0].reason


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("record", "name", "reason"),
    [
        (b"23 path=folder/new.jpg\n", "folder/new.jpg", ""),
        (b"11 mtime=1\n12 path=b.c\n", "b.c", ""),
        (b"23 mtime=1700000path=a\n", "000000020.jpg", ""),
        (b"99 mtime=1700000path=a\n", "", "follows a pax header that cannot be read"),
        (b"23 mtime=1700000path=a ", "", "follows a pax header that cannot be read"),
    ],
)
def test_what_looks_like_the_usual_pax_header_is_read(
    tmp_path: Path, window: int, record: bytes, name: str, reason: str
) -> None:
    data = tar_bytes(members(range(40)), tarfile.PAX_FORMAT, 1700000000.25)
    usual = b"23 mtime=1700000000.25\n"
    parts = data.split(usual)
    data = usual.join(parts[:61]) + record + usual.join(parts[61:])
    listing = walk(data, tmp_path, window)
    expected = [name for name, _ in members(range(40))]
    expected[60:61] = [name] if name else []
    assert [name for name, _, _ in listed(listing)] == expected
    assert [fault.reason for fault in listing.faults] == ([reason] if reason else [])
