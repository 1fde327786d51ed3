"""A run in a folder where `RUN` and `run` are one name, as on NTFS, SMB and folded ext4."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import final_projector

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not shutil.which("lowntfs-3g") or os.geteuid() != 0,
        reason="needs root and Debian's package ntfs-3g",
    ),
]


@pytest.fixture
def folded(tmp_path: Path) -> Iterator[Path]:
    """A mounted NTFS that writes each name in lower case and finds it in any."""
    image, mounted = tmp_path / "ntfs", tmp_path / "folded"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(2**30)
    subprocess.run(["mkntfs", "-q", "-F", "-f", image], check=True, capture_output=True)
    options = "ignore_case,permissions"
    subprocess.run(["lowntfs-3g", image, mounted, "-o", options], check=True, capture_output=True)
    mounted.chmod(0o755)
    yield mounted
    subprocess.run(["umount", "--lazy", mounted], check=True)


def mgpt4(runs: Path, *arguments: str, ends_with: int = 0) -> str:
    """What the command prints on both channels."""
    ended = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *arguments],
        env={**os.environ, "MGPT4_RUNS_DIR": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ends_with, ended.stderr
    return ended.stdout + ended.stderr


def test_names_that_differ_in_case_alone_are_one_run(folded: Path, tmp_path: Path) -> None:
    submit = ("submit", "--config", "toy-stage1", "--executor", "local")
    longer, whole = ("--set", "train.max_steps=60"), tmp_path / "whole"
    mgpt4(whole, *submit, *longer, "--name", "first", "--wait")
    runs = folded / "Runs"
    mgpt4(
        runs,
        *submit,
        "--set",
        "train.max_steps=40",
        "--set",
        "train.lr_steps=60",
        "--name",
        "First",
        "--wait",
    )
    assert "exists already" in mgpt4(runs, *submit, "--name", "FIRST", ends_with=3)
    mgpt4(runs, "resume", "FIRST", *longer, "--wait")
    assert "60/60" in mgpt4(runs, "status", "first")
    assert final_projector(runs / "fIRST") == final_projector(whole / "first")
