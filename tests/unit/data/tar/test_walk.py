"""The header walk finds what tarfile finds, and goes on where tarfile stops."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgpt4_hpc.data.tar.header import WindowedFile
from tests.unit.data.tar.walking import WINDOWS, by_tarfile, listed, names, walk
from tests.unit.data.worlds import members, tar_bytes

paths = st.lists(names, min_size=1, max_size=4).map("/".join)

contents = st.binary(max_size=30) | st.integers(0, 5000).map(lambda size: b"x" * size)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    entries=st.lists(st.tuples(paths, contents), max_size=12),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    mtime=st.sampled_from([0, 1700000000, 1700000000.25]),
    window=st.sampled_from(WINDOWS),
    crcs=st.booleans(),
)
def test_agrees_with_tarfile(
    tmp_path: Path,
    entries: list[tuple[str, bytes]],
    form: int,
    mtime: float,
    window: int,
    crcs: bool,
) -> None:
    data = tar_bytes(entries, form, mtime)
    listing = walk(data, tmp_path, window, crcs=crcs)
    assert listed(listing) == by_tarfile(data)
    assert not listing.faults
    if crcs:
        assert listing.crcs is not None
        assert listing.crcs.tolist() == [zlib.crc32(content) for _, content in entries]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_reported(tmp_path: Path, kind: bytes) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    listing = walk(data.getvalue(), tmp_path)
    assert not listing.names
    assert [fault.name for fault in listing.faults] == [b"1.jpg"]


def test_cut_off_in_a_member_and_between_members(tmp_path: Path) -> None:
    data = tar_bytes(members(range(3)))
    ends = [offset + -(-size // 512) * 512 for _, offset, size in by_tarfile(data)]
    inside = walk(data[: ends[4] - 600], tmp_path)
    assert len(inside.names) == 4
    assert "cut off" in inside.faults[0].reason
    between = walk(data[: ends[4]], tmp_path)
    assert len(between.names) == 5
    assert "no end marker" in between.faults[0].reason
    in_header = walk(data[: ends[4] + 100], tmp_path)
    assert "cut off" in in_header.faults[0].reason


def test_goes_on_behind_a_damaged_header(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(members(range(4))))
    sound = listed(walk(bytes(data), tmp_path))
    data[sound[3][1] - 512 + 130] ^= 0x10  # in the fourth member's size
    listing = walk(bytes(data), tmp_path)
    assert listed(listing) == [entry for entry in sound if entry[0] != sound[3][0]]
    assert listing.faults[0].name == sound[3][0].encode()


def test_goes_on_behind_zeros_and_in_shifted_data(tmp_path: Path) -> None:
    data = tar_bytes(members(range(4)))
    sound = listed(walk(data, tmp_path))
    begin = sound[3][1] - 512
    holed = data[:begin] + bytes(1024) + data[begin:]
    assert [name for name, _, _ in listed(walk(holed, tmp_path))] == [name for name, _, _ in sound]
    assert "samples go on" in walk(holed, tmp_path).faults[0].reason
    shifted = walk(data[:begin] + b"garbage" + data[begin:], tmp_path)
    assert [name for name, _, _ in listed(shifted)] == [name for name, _, _ in sound]


def test_a_hole_at_the_end_is_noticed(tmp_path: Path) -> None:
    data = tar_bytes(members(range(40), b"\xff\xd8" * 2000))
    half = len(data) // 2 // 512 * 512
    listing = walk(data[:half] + bytes(len(data) - half), tmp_path)
    assert listing.faults
    listing = walk(data[: -len(data) // 4] + b"\1" * 700, tmp_path)
    assert listing.faults


def test_nonsense_is_reported_not_raised(tmp_path: Path) -> None:
    for data in (b"", b"x", b"<html>" * 200, bytes(511), os.urandom(5000), b"\x1f\x8b" * 600):
        listing = walk(data, tmp_path)
        assert not listing.names
        assert listing.faults, data[:10]


def test_a_damaged_header_is_told_by_its_announced_name(tmp_path: Path) -> None:
    long = ["n" * 120 + name for name, _ in members(range(2))]
    data = bytearray(tar_bytes([(name, b"abc") for name in long], tarfile.PAX_FORMAT))
    header = by_tarfile(bytes(data))[0][1] - 512
    data[header + 140] ^= 1  # in its time
    listing = walk(bytes(data), tmp_path)
    assert [name for name, _, _ in listed(listing)] == long[1:]
    assert listing.faults[0].name == long[0].encode()
    assert "checksum" in listing.faults[0].reason


def test_a_window_grows_when_reads_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr("mgpt4_hpc.data.tar.header.time.perf_counter", lambda: next(clock))
    filled: list[int] = []
    fill = WindowedFile.fill
    monkeypatch.setattr(WindowedFile, "fill", lambda *args: filled.append(1) or fill(*args))
    data = tar_bytes(members(range(200), b"\xff\xd8" * 5000))
    assert listed(walk(data, tmp_path)) == by_tarfile(data)
    assert 32 < len(filled) < 40
