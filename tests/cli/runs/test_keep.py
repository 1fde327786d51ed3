"""``keep``: which runs come back, and that the others are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.run_dir import RunDir, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.runs.test_resume import Submissions
from tests.cli.synthetic import Clock, attempt, make_run, submitted
from tests.support.shown import assert_schema


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> Submissions:
    stand_in = Submissions()
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.submit_run", stand_in)
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.preflight", lambda *_, **__: [])
    return stand_in


def begun(
    runs: Path, name: str, job_id: str, cause: str | None = None, **settings: object
) -> RunDir:
    """A run whose job did something long ago."""
    run = make_run(runs, name, **settings)
    submitted(run, job_id)
    attempt(run, 1, first=1, last=5, cause=cause, job_id=job_id, clock=Clock(1e9))
    return run


def test_it_brings_back_what_nobody_ended(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
) -> None:
    runs = tmp_path / "runs"
    begun(runs, "timed-out", "11")
    begun(runs, "asked", "12", "unknown").resubmit_needed.write_text("mgpt4 resume asked\n")
    begun(runs, "node-died", "13")
    begun(runs, "running", "14")
    begun(runs, "finished", "15", "finished")
    begun(runs, "failed", "16", "crashed").failed.write_text("crashed 4 times\n")
    request_cancel(begun(runs, "cancelled", "17"), "17")
    begun(runs, "by-a-person", "18")
    make_run(runs, "never-submitted")
    slurm.squeue = squeue_row("14", "RUNNING")
    slurm.sacct = (
        "11|TIMEOUT|0:0|1|2|n1|None|||\n12|FAILED|75:0|1|2|n1|None|||\n13|NODE_FAIL|0:0|1|2|n1|None|||\n"
        "18|CANCELLED by 1000|0:0|1|2|n1|None|||\n"
    )
    ended = mgpt4("keep", "--json")
    assert ended.code == 0, ended.err
    assert_schema("keep", ended.json)
    assert {row["run"] for row in ended.json} == {"timed-out", "asked", "node-died"}
    assert {asked[0].config.name for asked in submissions.asked} == {
        "timed-out",
        "asked",
        "node-died",
    }
    assert {asked[1] for asked in submissions.asked} == {"slurm"}
    assert sorted(submissions.succeeds) == [("11",), ("12",), ("13",)]

    nothing = mgpt4("keep", "finished", "running")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "")
    slurm.squeue = slurm.sacct = None
    assert mgpt4("keep").code == 5


def test_what_follows_a_run_comes_back_with_it(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
) -> None:
    runs = tmp_path / "runs"
    first = begun(runs, "first", "11")
    second = make_run(runs, "second", stage=2, model__projector=str(first.path))
    submitted(second, "12")
    first.failed.write_text("the data is broken\n")
    slurm.sacct = "11|NODE_FAIL|0:0|1|2|n1|None|||\n12|CANCELLED|0:0|None|2|None assigned|None|||\n"
    assert (mgpt4("keep").out, submissions.asked) == ("", [])
    first.failed.unlink()
    ended = mgpt4("keep")
    assert ended.code == 0 and [asked[0].config.name for asked in submissions.asked] == ["first"]
    # The stand-in leaves no job behind that the second could wait for.
    assert "second waited for first" in ended.err


@pytest.mark.parametrize(("jobs", "again"), [(3, True), (4, False)])
def test_jobs_that_never_begin_come_to_an_end(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
    jobs: int,
    again: bool,
) -> None:
    run = begun(tmp_path / "runs", "one", "11")
    line = [str(11 + n) for n in range(jobs + 1)]
    write_json(
        run.slurm / "job.json", {"job_id": line[-1], "submitted": 1.5e9, "succeeds": line[:-1]}
    )
    slurm.sacct = f"{line[-1]}|FAILED|1:0|1|2|n1|None|||\n"
    ended = mgpt4("keep")
    assert bool(submissions.asked) is again
    assert ("its last 4 jobs ended before a rank started" in ended.err) is not again
