"""The state of many runs from one query each to squeue and sacct."""

import time
from pathlib import Path

import pytest

from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.formatting import clock_time
from mgpt4_hpc.run_dir import read_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted


@pytest.mark.slow
def test_one_call_each_for_two_hundred_runs_in_two_seconds(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    rows = []
    for number in range(200):
        run = make_run_quickly(tmp_path / "runs", f"run{number:03d}", str(number))
        rows.append(squeue_row(run, "RUNNING"))
    slurm.squeue = "".join(rows[:100])
    began = time.process_time()
    shown = mgpt4("status", "--json").json
    assert time.process_time() - began < 2
    assert len(shown) == 200
    assert [command[0] for command in slurm.calls] == ["squeue", "sacct"]


def make_run_quickly(root: Path, name: str, job_id: str) -> str:
    """A run with two thousand steps logged, by copying lines rather than settings."""
    run = make_run(root, name) if name.endswith("000") else None
    template = root / "run000"
    if run is None:
        import shutil

        shutil.copytree(template, root / name)
    else:
        attempt(run, 1, first=1, last=2000, job_id="0")
    from mgpt4_hpc.run_dir import RunDir

    submitted(RunDir(root / name), job_id)
    return job_id


def test_squeue_fails_and_sacct_knows(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    slurm.squeue, slurm.sacct = None, "17|RUNNING|0:0|1795360162|Unknown|node[1-4]|None|||\n"
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    (row,) = ended.json
    assert row["source"] == "sacct"
    assert "`squeue` cannot reach Slurm" in ended.err
    # Nobody knows what became of it since.
    assert row["as_of"] == read_json(run.slurm / "job.json")["submitted"]
    assert row["text"] == f"starting, as of {clock_time(row['as_of'], time.time())}"
    assert row["text"] in mgpt4("status").out
    # What accounting says is over is over, and what squeue says is of now.
    slurm.sacct = "17|CANCELLED by 1000|0:0|1795360162|1795360204|node1|None|||\n"
    assert mgpt4("status", "--json").json[0]["as_of"] is None
    slurm.squeue = squeue_row("17", "RUNNING")
    assert mgpt4("status", "--json").json[0]["as_of"] is None


def test_preempted_in_accounting_may_be_back_in_the_queue(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    attempt(run, 1, first=1, last=5, cause="preempted", requeue=True, clock=Clock(1e9))
    slurm.squeue, slurm.sacct = None, "17|PREEMPTED|0:0|1795360162|1795360204|node1|None|||\n"
    assert mgpt4("status", "--json").json[0]["state"] == "unknown"
    slurm.squeue = ""
    assert mgpt4("status", "--json").json[0]["state"] == "stopped"


def test_a_job_that_waits_for_another_names_its_run(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    first = make_run(tmp_path / "runs", "first")
    submitted(make_run(tmp_path / "runs", "second", model__projector=str(first.path)), "18")
    slurm.squeue = squeue_row("18", "PENDING", "Dependency")
    (row,) = mgpt4("status", "second", "--json").json
    assert row["text"] == "pending (waits for first)"
    slurm.squeue = squeue_row("18", "PENDING", "Priority")
    (row,) = mgpt4("status", "second", "--json").json
    assert row["text"] == "pending (Priority)"


def test_who_cancelled_a_job_that_waited_for_another(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """As Slurm 22.05 shows one cancelled by hand (17), and one cancelled by itself (18)."""
    first = make_run(tmp_path / "runs", "first")
    for name, job_id in (("by-hand", "17"), ("by-slurm", "18")):
        submitted(make_run(tmp_path / "runs", name, model__projector=str(first.path)), job_id)
    slurm.sacct = (
        "17|CANCELLED by 1000|0:0|1795360162|1795360162|None assigned|Dependency|||\n"
        "18|CANCELLED|0:0|1795360162|1795360162|None assigned|Dependency|||\n"
    )
    told = {
        "by-hand": "cancelled by user 1000",
        "by-slurm": "stopped: first, which it waited for, did not finish; run `mgpt4 resume first`",
        "first": "stopped: never submitted; run `mgpt4 resume first`",
    }
    in_queue = squeue_row("17", "CANCELLED", "Dependency")
    in_queue += squeue_row("18", "CANCELLED", "DependencyNeverSatisfied")
    for slurm.squeue in (in_queue, ""):
        rows = mgpt4("status", "--json").json
        assert {row["name"]: row["text"] for row in rows} == told
    # Without accounting squeue alone must do.
    slurm.squeue, slurm.sacct = in_queue, None
    ended = mgpt4("status", "--json")
    texts = {row["name"]: row["text"] for row in ended.json}
    assert texts == {**told, "by-hand": "cancelled"} and ended.err == ""
    # Slurm may remove it for another reason than the one it was told to wait for.
    attempt(first, 1, first=1, last=8, cause="finished")
    rows = mgpt4("status", "by-slurm", "--json").json
    why = "stopped: Slurm removed it, though first is finished; run `mgpt4 resume by-slurm`"
    assert rows[0]["text"] == why


def test_no_accounting_is_no_news(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)

    def no_accounting(command: list[str]) -> str:
        if command[0] == "sacct":
            raise SlurmRejected("Slurm accounting storage is disabled")
        return ""

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", no_accounting)
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    assert ended.err == ""
    assert ended.json[0]["state"] == "lost"


def test_a_squeue_that_crashes_is_no_answer(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs must not look as if it were over: `rm` and `resume` believe what they see here."""
    submitted(make_run(tmp_path / "runs", "one"))

    def crash(command: list[str], **_: object) -> str:
        if command[0] == "squeue":
            raise SlurmRejected("`squeue` was refused: it ended with code -11 and said nothing")
        return ""

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", crash)
    for words in (["status"], ["cancel", "one"], ["rm", "one", "--yes"]):
        ended = mgpt4(*words)
        assert ended.code == 5, words
        assert "it ended with code -11" in ended.err
