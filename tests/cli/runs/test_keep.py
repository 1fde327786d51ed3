"""``keep``: which runs come back, and that the others are left alone."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import make_run, submitted
from tests.support.keeping import begun
from tests.support.resuming import Submissions
from tests.support.shown import assert_schema


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
    begun(runs, "preempted", "19")
    begun(runs, "running", "14")
    begun(runs, "finished", "15", "finished")
    begun(runs, "failed", "16", "crashed").failed.write_text("crashed 4 times\n")
    request_cancel(begun(runs, "cancelled", "17"), "17")
    begun(runs, "by-a-person", "18")
    make_run(runs, "never-submitted")
    slurm.squeue = squeue_row("14", "RUNNING")
    slurm.sacct = (
        "11|TIMEOUT|0:0|1|2|n1|None|||\n12|FAILED|75:0|1|2|n1|None|||\n13|NODE_FAIL|0:0|1|2|n1|None|||\n"
        "18|CANCELLED by 1000|0:0|1|2|n1|None|||\n19|PREEMPTED|0:0|1|2|n1|None|||\n"
    )
    ended = mgpt4("keep", "--json")
    assert ended.code == 0, ended.err
    assert_schema("keep", ended.json)
    back = {"timed-out", "asked", "node-died", "preempted"}
    assert {row["run"] for row in ended.json} == back
    assert {asked[0].config.name for asked in submissions.asked} == back
    assert {asked[1] for asked in submissions.asked} == {"slurm"}
    assert sorted(submissions.succeeds) == [("11",), ("12",), ("13",), ("19",)]

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
