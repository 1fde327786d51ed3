"""Tests of ``launch/job/part_end.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.job.part_end import end_part
from tests.unit.launch.fakes import FakeScontrol


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in (("ARRAY_JOB_ID", "17"), ("ARRAY_TASK_ID", "2"), ("JOB_ID", "18")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path / "2"


def kill_until_it_stays_away(part: Path, *, most: int, writes: bool) -> int:
    """How many kills in a row are followed by a requeue."""
    for number in range(most):
        if writes:
            with part.with_suffix(".jsonl").open("a") as file:
                file.write("an answer\n")
        with part.with_suffix(".log").open("a") as file:
            file.write("another start\n")
        if end_part(part, None).startswith("no requeue"):
            return number
    return most


def test_a_killed_part_comes_back_while_it_writes_results(
    part: Path, scontrol: FakeScontrol
) -> None:
    scontrol.says()
    assert kill_until_it_stays_away(part, most=20, writes=True) == 5
    assert len(scontrol.requeues) == 5


def test_a_part_that_writes_nothing_comes_back_twice(part: Path, scontrol: FakeScontrol) -> None:
    part.with_name("20.jsonl").write_text("another part's")
    scontrol.says()
    assert kill_until_it_stays_away(part, most=20, writes=False) == 2


def test_a_record_that_was_cut_short_counts_and_stops_nothing(
    part: Path, scontrol: FakeScontrol
) -> None:
    scontrol.says()
    part.with_suffix(".ends").write_text('["crashed", true, 1]\n["crash\n')
    assert kill_until_it_stays_away(part, most=20, writes=True) == 3


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ({"state": "COMPLETING", "reason": "TimeLimit"}, "time limit"),
        # As PreemptMode=CANCEL does it: Slurm itself brings nothing back.
        ({"state": "COMPLETING", "preempt": "2026-03-01T10:00:20"}, "preempted"),
        ({"state": "RUNNING", "preempt": "2026-03-01T10:00:00"}, "preempted"),
    ],
)
def test_a_part_comes_back_after_its_time_limit_and_a_preemption_that_cancels(
    part: Path, scontrol: FakeScontrol, answer: dict[str, str], cause: str
) -> None:
    scontrol.says(**answer)
    assert end_part(part, "SIGTERM") == f"{cause}: requeued"
    assert len(scontrol.requeues) == 1


def test_a_cancelled_part_stays_away(part: Path, scontrol: FakeScontrol) -> None:
    scontrol.says(state="COMPLETING")
    assert end_part(part, "SIGTERM") == "no requeue: cancelled by a person: not requeued"
    assert not scontrol.requeues and not part.with_suffix(".ends").exists()
