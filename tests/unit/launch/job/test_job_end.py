"""A job's end where Slurm may count it as a preemption; squeue and scontrol are scripts here.

That a real Slurm then does what is wanted is shown in tests/slurm/test_end_after_preemption.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mgpt4_hpc.launch.job.job_end import end_finished, end_unfinished
from mgpt4_hpc.launch.slurm.job_start import JobStart
from tests.unit.launch.fakes import FakeScontrol

AGAIN = JobStart("slurm", "17", 1)
PREEMPTED = "2026-03-01T10:00:00"


@pytest.fixture
def queue(scontrol: FakeScontrol) -> Path:
    """What squeue prints: a line for each waiting job."""
    scontrol.says()
    return scontrol.waiting


def updates(scontrol: FakeScontrol) -> list[str]:
    return [call.removeprefix("update ") for call in scontrol.calls if call.startswith("update")]


def test_dependents_go_first_and_then_the_wish_to_come_back(
    tmp_path: Path, scontrol: FakeScontrol, queue: Path
) -> None:
    queue.write_text(
        "18|afterok:17(unfulfilled)\n20_[0-9%2]|afterok:17(unfulfilled),afterok:3(unfulfilled)\n"
        "21|afterok:4(unfulfilled)\n22|(null)\n"
    )
    end_finished(AGAIN, tmp_path, {})
    assert updates(scontrol) == [
        "JobId=18 Dependency=",
        "JobId=20_[0-9] Dependency=afterok:3(unfulfilled)",
        "JobId=17 Requeue=0",
    ]


def test_a_job_that_was_never_preempted_ends_as_ever(
    tmp_path: Path, scontrol: FakeScontrol, queue: Path
) -> None:
    first = JobStart("slurm", "17", 0)
    end_finished(first, tmp_path, {})
    end_unfinished(first)
    end_finished(JobStart("local", "17", 3), tmp_path, {})
    assert updates(scontrol) == []
    scontrol.says(preempt=PREEMPTED)  # it finishes within its grace time
    end_finished(first, tmp_path, {})
    end_unfinished(first)
    assert updates(scontrol) == ["JobId=17 Requeue=0"] * 2


def test_tasks_of_an_array_take_turns_and_outlive_a_dead_one(
    tmp_path: Path, scontrol: FakeScontrol, queue: Path
) -> None:
    queue.write_text("18|afterok:17_3(unfulfilled)\n")
    lock = tmp_path / ".ending-17"
    lock.touch()
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    end_finished(JobStart("slurm", "17_3", 1), tmp_path, {"SLURM_JOB_ID": "19"})
    assert updates(scontrol) == ["JobId=18 Dependency=", "JobId=17_3 Requeue=0"]
    assert not lock.exists()


def test_a_silent_slurm_keeps_no_job_from_its_end(
    tmp_path: Path, scontrol: FakeScontrol, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.unlink()
    scontrol.answer.unlink()
    end_finished(AGAIN, tmp_path, {})
    assert "which jobs wait for this one is not known" in capsys.readouterr().out
