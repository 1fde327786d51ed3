"""Folders on file systems that cannot sync them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "one")
    made.create({"name": "one"})
    return made


@pytest.mark.parametrize(
    ("error", "claimed"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_may_know_no_fsync_of_folders(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, error: int, claimed: bool
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if claimed:
        assert run.claim_attempt({}) == 1
    else:
        with pytest.raises(OSError):
            run.claim_attempt({})
