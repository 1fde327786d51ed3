"""``resume``: whether a run is free, and the exit codes."""

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.cancel_request import cancel_requested, request_cancel
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt
from tests.support.resuming import Submissions, timed_out_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return timed_out_run(tmp_path / "runs")


def test_as_it_was(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions) -> None:
    request_cancel(run, "17")
    before = run.config_file.read_bytes()
    ended = mgpt4("resume", "one", "--json")
    assert ended.code == 0
    assert ended.json["job_id"] == "18"
    assert ended.json["changes"] == {}
    ((_, executor, dependency),) = submissions.asked
    assert (executor, dependency) == ("slurm", None)
    assert run.config_file.read_bytes() == before
    assert not cancel_requested(run)


def test_a_dry_run_checks_and_leaves_all_as_it_was(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    request_cancel(run, "17")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    dry = ("resume", "one", "--dry-run", "--set", "max_steps=200", "--json")
    ended = mgpt4(*dry)
    assert ended.code == 0 and submissions.asked == []
    assert (ended.json["job_id"], ended.json["finished"]) == (None, False)
    assert ended.json["changes"]["train.max_steps"] == {"old": 100, "new": 200}
    shorter = mgpt4("resume", "one", "--dry-run", "--set", "max_steps=10")
    assert shorter.code == 0 and "one is at step 20 already" in shorter.err, shorter.err
    slurm.squeue = squeue_row("17", "RUNNING")
    assert mgpt4(*dry).json["job_id"] is None, "a job that runs keeps its last step"
    assert mgpt4("resume", "one", "--dry-run", "--set", "seed=3").code == 7
    slurm.squeue = ""
    assert mgpt4("resume", "one", "--dry-run", "--set", "seed=3").code == 2
    assert mgpt4("resume", "one", "--dry-run", "--as", "two").code == 2
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert {path: text for path, text in after.items() if text != before.get(path)} == {}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_its_job_is_alive(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions, state: str
) -> None:
    slurm.squeue = squeue_row("17", state)
    ended = mgpt4("resume", "one")
    assert ended.code == 7
    assert "one is alive" in ended.err
    assert "(job 17)" in ended.err
    assert submissions.asked == []


def test_finished_already(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    attempt(run, 2, first=21, last=100, cause="finished")
    ended = mgpt4("resume", "one")
    assert ended.code == 0
    assert "finished already" in ended.out
    assert mgpt4("resume", "one", "--json").json["finished"] is True
    assert submissions.asked == []


def test_slurm_is_down(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    run.resubmit_needed.unlink()
    slurm.squeue = slurm.sacct = None
    assert mgpt4("resume", "one").code == 5
    assert submissions.asked == []


def test_no_such_run(mgpt4: Mgpt4) -> None:
    assert mgpt4("resume", "other").code == 6


def test_a_newer_format_is_left_alone(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    run.identity_file.write_text('{"format_version": 99}')
    assert mgpt4("resume", "one").code == 7


def test_a_checkpoint_is_no_run_to_resume_or_remove(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    (run.checkpoints / "step-00000020").mkdir(exist_ok=True)
    (run.checkpoints / "step-00000020" / "manifest.json").write_text("{}")
    for command in ("resume", "rm"):
        for name in ("one@20", "one/checkpoints/step-20", "one/checkpoints/step-00000020"):
            ended = mgpt4(command, name)
            assert ended.code == 6 and "is one checkpoint" in ended.err
    for command in ("status", "history", "usage", "logs", "config show"):
        whole, part = (mgpt4(*command.split(), name) for name in ("one", "one@20"))
        assert (part.code, part.out.replace("one@20", "one")) == (whole.code, whole.out)
