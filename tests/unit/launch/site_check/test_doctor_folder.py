"""The runs folder's file system, tried; what a bad one does is played by breaking one call."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.launch.runs import shared_storage
from mgpt4_hpc.launch.site_check.doctor_folder import folder_findings
from mgpt4_hpc.launch.site_check.finding import Level


def found(folder: Path, level: str, *, shared: bool = False) -> str:
    findings = folder_findings(folder, shared=shared)
    assert not list(folder.glob(".mgpt4-doctor*"))
    return "\n".join(one.what for one in findings if one.level is Level(level))


def space(monkeypatch: pytest.MonkeyPatch, blocks: int, files: int, favail: int) -> None:
    """Let the file system report this space: the machine's own disk may be nearly full."""
    values = {"f_bavail": blocks, "f_frsize": 4096, "f_files": files, "f_favail": favail}
    monkeypatch.setattr(os, "statvfs", lambda _: type("Space", (), values))


def test_a_good_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    space(monkeypatch, 2**26, 10**7, 10**6)
    assert found(tmp_path, "fault") == found(tmp_path, "warning") == ""
    told = found(tmp_path, "ok")
    for word in ("renames", "O_EXCL", "fsync", "locks", "scripts", "only its owner", "GiB free"):
        assert word in told
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert "does not exist yet" in found(tmp_path / "a" / "b", "note")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "level"),
    [("tmpfs", "fault"), ("ext4", "warning"), ("lustre", "ok"), ("fuse.sshfs", "ok")],
)
def test_a_type_that_other_nodes_do_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nserver {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(shared_storage, "_MOUNTS", mounts)
    assert kind in found(tmp_path, level, shared=True)
    assert kind in found(tmp_path, "ok", shared=False)


@pytest.mark.parametrize(
    ("mode", "level"), [(0o777, "fault"), (0o1777, "ok"), (0o770, "note"), (0o700, "ok")]
)
def test_who_may_write(tmp_path: Path, mode: int, level: str) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(mode)
    assert f"{mode:04o}" in found(folder, level)


@pytest.mark.parametrize(
    ("blocks", "files", "favail", "level", "expected"),
    [
        (2**18, 10**7, 10**7, "fault", "1.0 GiB free"),
        (10 * 2**18, 10**7, 10**7, "warning", "10 GiB free"),
        (2**30, 10**7, 500, "fault", "500 files"),
        (2**30, 10**7, 5000, "warning", "5,000 files"),
    ],
)
def test_space(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: int,
    files: int,
    favail: int,
    level: str,
    expected: str,
) -> None:
    space(monkeypatch, blocks, files, favail)
    assert expected in found(tmp_path, level)


def refuse(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_no_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    assert "fsync fails: Invalid argument" in found(tmp_path, "fault")


def test_no_exclusive_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: str, flags: int, *more: Any, **named: Any) -> int:
        return real(path, flags & ~os.O_EXCL, *more, **named)

    monkeypatch.setattr(os, "open", without)
    assert "made twice" in found(tmp_path, "fault")


def test_no_locks_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", refuse(errno.ENOLCK))
    assert "locks do not work" in found(tmp_path, "note")


def test_noexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(subprocess, "run", no)
    assert "noexec" in found(tmp_path, "fault")


def test_a_rename_that_replaces_a_full_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.is_dir() and target.exists():
            shutil.rmtree(target)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert "checkpoint could be lost" in found(tmp_path, "fault")


def test_a_percent_sign(tmp_path: Path) -> None:
    assert "which Slurm would expand" in found(tmp_path / "50%", "fault")
