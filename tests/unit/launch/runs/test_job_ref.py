"""Whose job a run's is: copies, other clusters, strangers of the same number, nameless users."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from mgpt4_hpc.errors import RunLocked
from mgpt4_hpc.launch.runs.job_ref import note_job
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run


@pytest.fixture
def run(tmp_path: Path, slurm: FakeSlurm) -> RunDir:
    """A run that was submitted to the cluster alpha as job 17."""
    made = make_run(tmp_path / "runs")
    note_job(made, "slurm", "17", name="one", work_dir=made.path)
    slurm.squeue = row_of(made)
    return made


def row_of(run: RunDir, **changed: object) -> str:
    facts = {"user": os.getuid(), "name": "one", "dir": run.path, **changed}
    return squeue_row("17", "RUNNING", **facts)


def test_a_job_is_the_runs_by_name_user_and_folder(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir
) -> None:
    assert mgpt4("cancel", "one").code == 0
    assert slurm.called("scancel") == [["scancel", "17"]]


@pytest.mark.parametrize("other", [{"user": 54321}, {"name": "two"}, {"dir": "/elsewhere"}])
def test_a_strangers_job_of_the_same_number_is_left_alone(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, other: dict[str, object]
) -> None:
    noted = run.slurm / "job.json"
    write_json(noted, {**read_json(noted), "submitted": 0})
    slurm.squeue = row_of(run, **other)
    ended = mgpt4("cancel", "one")
    assert "nothing to cancel" in ended.out and not slurm.called("scancel")


def test_a_folder_with_the_sign_that_separates_squeues_fields(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    made = make_run(tmp_path / "a|b")
    note_job(made, "slurm", "17", name="one", work_dir=made.path)
    slurm.squeue = row_of(made)
    assert mgpt4("cancel", made.path).code == 0
    assert slurm.called("scancel")


def test_the_job_of_another_cluster_is_asked_about_there(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir
) -> None:
    slurm.cluster = "beta"
    slurm.squeue = "CLUSTER: alpha\n" + row_of(run)
    (row,) = mgpt4("status", "one", "--json").json
    assert (row["state"], row["cluster"]) == ("running", "alpha")
    for words in (("rm", "--yes"), ("resume",)):
        ended = mgpt4(*words, "one")
        assert ended.code == 7 and "mgpt4 cancel one" in ended.err
        assert "(on a login node of alpha)" in ended.err
    slurm.squeue = slurm.sacct = None
    # Nor is this one unknown for a Slurm that does not answer.
    (make_run(run.path.parent, "damaged").slurm / "job.json").write_text("{")
    # Who asks about all runs of a folder gets the others' states; who names this one an error.
    for words in (("status",), ("keep",)):
        every, named = mgpt4(*words), mgpt4(*words, "one")
        assert (every.code, named.code) == (0, 5), (every.err, named.err)
        assert "login node of alpha" in named.err
    assert "login node of alpha" in mgpt4("status").err
    assert len(max(mgpt4("status").err.split("`"), key=len)) < 400
    for words in (("rm", "--yes"), ("cancel",), ("resume",)):
        ended = mgpt4(*words, "one")
        assert ended.code == 5 and "login node of alpha" in ended.err
    assert run.checkpoints.is_dir()


def test_a_copy_has_no_job_and_a_moved_run_keeps_its_own(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir
) -> None:
    copy = run.path.with_name("copy")
    shutil.copytree(run.path, copy)
    ended = mgpt4("cancel", "copy")
    assert f"a copy of {run.path}" in ended.out and not slurm.called("scancel")
    ended = mgpt4("resume", "copy")
    assert ended.code == 7 and "--as NAME" in ended.err
    run.path.rename(run.path.with_name("moved"))
    assert mgpt4("cancel", "moved").code == 0
    assert slurm.called("scancel") == [["scancel", "17"]]
    assert "nothing to cancel" in mgpt4("cancel", "copy").out


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_two_spellings_of_a_name_are_one_run_where_the_storage_folds_case(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir
) -> None:
    """A mount shows one folder under two names, as such storage does."""
    other = run.path.with_name("ONE")
    other.mkdir()
    subprocess.run(["mount", "--bind", run.path, other], check=True)
    try:
        with pytest.raises(RunLocked, match="exists already"):
            RunDir(other).create({})
        (row,) = mgpt4("status", "ONE", "--json").json
        assert (row["state"], row["job_id"]) == ("running", "17")
        for words in (("rm", "--yes"), ("resume",)):
            ended = mgpt4(*words, "ONE")
            assert ended.code == 7 and "starting" in ended.err, ended.err
        assert mgpt4("cancel", "ONE").code == 0
        assert slurm.called("scancel") == [["scancel", "17"]]
    finally:
        subprocess.run(["umount", "--lazy", other], check=True)
    assert run.checkpoints.is_dir()


def test_a_branch_is_a_run_of_its_own_with_the_others_state(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(run, 1, first=1, last=20, cause="cancelled")
    slurm.squeue = ""
    submitted: list[RunDir] = []

    def submit(made: RunDir, *_: object, **__: object) -> None:
        submitted.append(made)

    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.submit_run", submit)
    monkeypatch.setattr(
        "mgpt4_hpc.launch.manage.resume.preflight_findings", lambda *_, **__: ([], [])
    )
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.version_drift", lambda *_, **__: [])
    ended = mgpt4("resume", "one", "--as", "two", "--set", "train.lr=0.5", "--executor", "local")
    (two,) = submitted
    assert ended.code == 0, ended.err
    assert two.path == run.path.with_name("two") and two.run_id != run.run_id
    assert run.run_id in two.lineage and two.run_id not in run.lineage
    assert (two.checkpoints / "step-00000020").is_dir()
    assert list(two.ledger.iterdir()) == [] and two.drift_accepted.exists()
    assert {"name: two", "lr: 0.5"} < {
        line.partition("  #")[0].strip() for line in two.config_file.read_text().splitlines()
    }
    again = mgpt4("resume", "one", "--as", "two")
    assert again.code == 7 and "exists already" in again.err
    assert mgpt4("resume", "one", "--as", "no/name").code == 2
    idle = mgpt4("resume", "one", "--as", "three", "--set", "train.max_steps=20")
    assert idle.code == 2 and "no step is left" in idle.err
    assert not run.path.with_name("three").exists()


@pytest.mark.parametrize("words", ["cancel", "logs", "chat --checkpoint", "serve", "eval"])
def test_the_folder_of_another_user_is_not_obeyed(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    run.path.chmod(0o777)
    ended = mgpt4(*words.split(), "one")
    assert ended.code == 7 and "not safe" in ended.err
    assert not slurm.called("scancel")


@pytest.mark.parametrize("words", ["cancel", "cancel --save", "status", "rm --dry-run", "ls"])
def test_a_user_without_an_entry_in_the_passwd_database(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    slurm.squeue = "" if words.startswith("rm") else slurm.squeue
    if words.startswith("rm"):
        attempt(run, 1, first=1, last=100, cause="finished")
    command, *options = words.split()
    ended = mgpt4(command, *options, *([] if command == "ls" else ["one"]))
    assert ended.code == 0, ended.err
