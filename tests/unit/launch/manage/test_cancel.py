"""What a cancel does where the mark cannot be written, or Slurm refuses."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.launch.runs import cancel_request as cancel_mark_module
from mgpt4_hpc.launch.runs.cancel_request import (
    cancel_requested,
)
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import make_run, submitted


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return submitted(make_run(tmp_path / "runs"))


@pytest.mark.parametrize("save", [[], ["--save"]])
def test_a_full_quota_keeps_nobody_from_cancelling(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, full: None, save: list[str]
) -> None:
    slurm.squeue = squeue_row("17", "RUNNING")
    ended = mgpt4("cancel", "one", *save)
    assert ended.code == 0 and "no mark could be left" in ended.out
    assert slurm.called("scancel")
    assert bool(slurm.called("scontrol")) is bool(save)


def test_without_a_mark_slurm_itself_must_keep_the_job_away(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, full: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.squeue = squeue_row("17", "RUNNING")

    def refuse(command: list[str], **_: Any) -> str:
        if command[0] == "scontrol":
            raise SlurmRejected("`scontrol update` was refused: Access denied")
        return slurm(command)

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.run_slurm", refuse)
    ended = mgpt4("cancel", "one", "--save")
    assert ended.code == 4 and "would save and come back" in ended.err
    assert "Access denied" in ended.err and not slurm.called("scancel")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, value: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(cancel_mark_module, "write_json", write)


def test_a_cancel_that_failed_leaves_no_mark(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the job would stay away after its next preemption, to its owner's surprise."""
    slurm.squeue = squeue_row("17", "RUNNING")
    monkeypatch.setattr(slurm, "scancel", None, raising=False)
    ended = mgpt4("cancel", "one")
    assert ended.code == 5
    assert not cancel_requested(run)
    # What was sent may have arrived.
    assert "job 17 of one may or may not be cancelled: `scancel 17` cannot reach" in ended.err
    assert "may still carry it out" in ended.err
    assert "`mgpt4 status one` shows" in ended.err and "`mgpt4 cancel one` again" in ended.err
