"""Runs that start from another run wait for it, and come back with it."""

from pathlib import Path

from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted
from tests.support.resuming import Submissions


def test_it_waits_for_the_run_it_starts_from(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    first = make_run(tmp_path / "runs", "first")
    submitted(first, "21")
    second = make_run(tmp_path / "runs", "second", stage=2, model__projector=str(first.path))
    submitted(second, "19")
    slurm.squeue = squeue_row("21", "RUNNING") + squeue_row(
        "19", "CANCELLED", "DependencyNeverSatisfied"
    )
    assert mgpt4("resume", "second").code == 0
    assert submissions.asked[0][2] == "afterok:21"

    attempt(first, 1, first=1, last=9, cause="crashed", job_id="21")
    slurm.squeue = slurm.squeue.replace("RUNNING", "FAILED ")
    ended = mgpt4("resume", "second")
    assert ended.code == 3
    assert f"mgpt4 resume {first.path}" in ended.err


def test_a_finished_run_brings_back_what_waited_for_it(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    first = make_run(tmp_path / "runs", "first")
    submitted(first, "21")
    attempt(first, 1, first=1, last=20, cause="finished", job_id="21")
    for name, job in (("removed", "19"), ("cancelled", "20")):
        second = make_run(tmp_path / "runs", name, stage=2, model__projector=str(first.path))
        submitted(second, job)
    # The controller has forgotten both; accounting as Slurm 24.11 has it.
    slurm.sacct = (
        "19|CANCELLED|0:0|None|1795360206|None assigned|None|||\n"
        "20|CANCELLED by 1000|0:0|None|1795360206|None assigned|None|||\n"
    )
    ended = mgpt4("resume", "first")
    assert ended.code == 0, ended.err
    assert [(asked[0].config.name, asked[2]) for asked in submissions.asked] == [("removed", None)]
    assert "removed, which waited for first, is job" in ended.err
