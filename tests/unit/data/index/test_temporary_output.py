"""What killed processes leave is removed, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.temporary_output import remove_leftovers, scratch_beside, scratch_path


def test_it_is_gone_afterwards_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_beside(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".out.")
        assert scratch_path(tmp_path / "out") != folder
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_the_dead_of_this_host_are_cleaned_up_after(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    dead, dead_file = f".out.{host}.{ended.pid}.0.partial", f".out.{host}.{ended.pid}.1.partial"
    (tmp_path / dead).mkdir()
    (tmp_path / dead / "half").write_text("x")
    (tmp_path / dead_file).write_text("x")
    kept = {
        f".out.{host}.{os.getpid()}.0.partial",
        f".out.elsewhere.{ended.pid}.0.partial",
        f".outer.{host}.{ended.pid}.0.partial",
        f".out.{host}.{ended.pid}.0",
        "out",
    }
    for name in kept:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_leftovers(tmp_path / "none" / "out")
