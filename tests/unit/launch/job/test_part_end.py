"""Tests of ``launch/job/part_end.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.job.part_end import end_part, main
from tests.unit.launch.fakes import FakeScontrol

PREEMPTED = "2026-03-01T10:00:00"


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


@pytest.mark.parametrize("refusal", [None, "Access/permission denied"])
def test_a_part_that_may_not_be_requeued_is_done_by_another_job(
    part: Path, scontrol: FakeScontrol, refusal: str | None
) -> None:
    part.with_name("array.sbatch").write_text("#!/bin/bash\n")
    scontrol.says(state="RUNNING", preempt=PREEMPTED)
    if refusal is None:
        record = scontrol.answer.read_text()
        scontrol.answer.write_text(record.replace("Requeue=1", "Requeue=0"))
    else:
        scontrol.refusal.write_text(refusal)
    scontrol.waiting.write_text("30|afterok:17_2(unfulfilled)\n")
    assert end_part(part, "SIGTERM").endswith("job 50 does it")
    (submitted,) = (call for call in scontrol.calls if call.startswith("sbatch"))
    assert "--array=2 --dependency=afterany:17_2" in submitted
    assert "update JobId=30 Dependency=afterok:50(unfulfilled)" in scontrol.calls
    assert part.with_name("2.job").read_text() == "50"
    scontrol.no_jobs.write_text("no sbatch here")
    assert "no sbatch here" in end_part(part, "SIGTERM")


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("0", ["JobId=30 Dependency=", "JobId=17_2 Requeue=0"]),
        ("1", ["JobId=17_2 Requeue=0"]),
        # Cancelled after a preemption: Slurm would start it once more.
        ("143", ["JobId=17_2 Requeue=0"]),
    ],
)
def test_a_part_that_was_preempted_before_ends_once(
    part: Path,
    scontrol: FakeScontrol,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    changes: list[str],
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    scontrol.says(state="COMPLETING", restarts=1)
    scontrol.waiting.write_text("30|afterok:17_2(unfulfilled)\n")
    (part.parent / "parts").mkdir()
    main([str(part.parent / "parts" / "2"), "--exit-code", code])
    updates = [call.removeprefix("update ") for call in scontrol.calls if "update" in call]
    assert updates == changes and not scontrol.requeues


def test_a_part_that_slurm_has_requeued_already_may_start_again(
    part: Path, scontrol: FakeScontrol
) -> None:
    scontrol.says(state="COMPLETING", restarts=1, preempt=PREEMPTED)
    main([str(part), "--exit-code", "143", "--signal", "SIGTERM"])
    assert not [call for call in scontrol.calls if "Requeue=0" in call]
