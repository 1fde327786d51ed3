"""Tests of ``launch/runs/submission_lock.py``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mgpt4_hpc.errors import (
    RunLocked,
    SlurmRejected,
)
from mgpt4_hpc.launch.runs.submission_lock import submitting
from mgpt4_hpc.run_dir import RunDir
from tests.support.forked import in_processes


def test_only_one_of_many_commands_gets_hold_of_a_run(run: RunDir, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def attempt() -> str:
        while not go.exists():
            pass
        try:
            with submitting(run):
                (tmp_path / f"in-{os.getpid()}").write_text("")
                while not (tmp_path / "enough").exists():
                    pass
                return "in"
        except RunLocked:
            (tmp_path / "enough").write_text("")
            return "out"

    go.write_text("")
    assert sorted(in_processes([attempt, attempt])) == ["in", "out"]
    assert len(list(tmp_path.glob("in-*"))) == 1


def test_the_hold_ends_with_the_command_also_with_a_failed_one(run: RunDir) -> None:
    with pytest.raises(SlurmRejected), submitting(run):
        raise SlurmRejected("no")
    with submitting(run):
        pass


def test_a_command_that_was_killed_can_be_cleared_away_and_is_after_an_hour(run: RunDir) -> None:
    lock = run.slurm / ".submitting"
    lock.write_text("process 7 on login1")
    with pytest.raises(RunLocked, match="process 7 on login1") as caught, submitting(run):
        pass
    assert f"rm '{lock}'" in caught.value.fix
    assert lock.exists()
    long_ago = time.time() - 7200
    os.utime(lock, (long_ago, long_ago))
    with submitting(run):
        assert lock.read_text().startswith(f"process {os.getpid()} ")
