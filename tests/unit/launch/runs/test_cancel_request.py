"""The mark that a run shall end: who wrote it, for which job, and storage that stumbles."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.launch.runs import cancel_request as cancel_mark_module
from mgpt4_hpc.launch.runs.cancel_request import (
    cancel_mark,
    cancel_requested,
    is_cancelled,
    request_cancel,
    withdraw_cancel,
)
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir, read_json
from tests.cli.synthetic import make_run, submitted


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return submitted(make_run(tmp_path / "runs"))


def test_a_mark_made_by_hand(run: RunDir) -> None:
    cancel_mark(run).touch()
    assert cancel_requested(run, "any")
    withdraw_cancel(run)
    withdraw_cancel(run)
    assert not cancel_requested(run)


@pytest.mark.parametrize("trouble", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EACCES])
@pytest.mark.parametrize("times", [1, 99])
def test_storage_that_stumbles_is_no_wish_of_a_person(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, trouble: int, times: int
) -> None:
    request_cancel(run, "17")
    left = [OSError(trouble, os.strerror(trouble))] * times

    def stumble(path: Path) -> dict[str, Any]:
        if left:
            raise left.pop()
        return read_json(path)

    monkeypatch.setattr(cancel_mark_module, "read_json", stumble)
    goes_by = times == 1 and trouble != errno.EACCES
    assert cancel_requested(run, "17", pauses_s=(0.0, 0.0)) is goes_by


def test_a_successor_reads_the_mark_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do so in its grace time, and each read may take seconds while storage stumbles."""
    start = JobStart("slurm", "20", 0, succeeds=("17", "18", "19"))
    reads: list[Path] = []

    def fail(path: Path) -> dict[str, Any]:
        reads.append(path)
        raise OSError(errno.EIO, "stumbles")

    with monkeypatch.context() as patch:
        patch.setattr(cancel_mark_module, "read_json", fail)
        assert not is_cancelled(run, start, pauses_s=(0.0, 0.0))
    assert len(reads) == 3  # a read and its two retries
    request_cancel(run, "18")
    assert is_cancelled(run, start)
    request_cancel(run, "21")
    assert not is_cancelled(run, start)
