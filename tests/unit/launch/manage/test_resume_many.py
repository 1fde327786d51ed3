"""Resuming a sweep, or several runs: each by itself, and what concerns all once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.manage.changes import Overrides
from mgpt4_hpc.launch.manage.resume import Resumption
from mgpt4_hpc.launch.manage.resume_many import resume_many
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted
from tests.support.resuming import Submissions


def test_a_sweep_s_name_stands_for_what_is_left_of_it(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in ("done", "alive", "lost", "odd")]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
    done, _, lost, odd = runs
    attempt(done, 1, first=1, last=100, cause="finished", job_id="30_0")
    for run in (lost, odd):
        attempt(run, 1, first=1, last=9, cause="crashed", job_id="30_2")
        run.failed.write_text("a crash too many\n")
    odd.config_file.write_text("stage: [")
    slurm.squeue = squeue_row("30_1", "RUNNING")
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 4, "slurm")

    ended = mgpt4("resume", "s", "--set", "launch.max_crashes=9", "--json")
    assert ended.code == 2, "what is wrong with one is told in the end"
    assert str(odd.config_file) in ended.err
    assert "left alone: s-alive is alive" in ended.err
    assert [(one["run"], one["finished"], one["job_id"]) for one in ended.json] == [
        ("s-done", True, None),
        ("s-lost", False, "18"),
    ]
    assert [resolved.config.name for resolved, _, _ in submissions.asked] == ["s-lost"]
    assert read_config(lost.config_file).config.launch.max_crashes == 9


def test_what_is_wrong_with_all_runs_is_told_once(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "ab"]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
        run.resubmit_needed.write_text("Slurm did not say why\n")
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 2, "slurm")
    ended = mgpt4("resume", "s", "--set", "lr=0.1")
    assert ended.code == 2
    assert ended.err.count("decides the result") == 1
    assert "s-a could not be resumed" in ended.err and "s-b could not be resumed" in ended.err
    assert submissions.asked == []


def test_reasons_that_differ_name_their_runs_in_the_sweep_s_order(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    rates = {"s-a": 0.01, "s-b": 0.02, "s-c": 0.01, "s-d": 0.03}
    runs = [make_run(tmp_path / "runs", name, train__lr=lr) for name, lr in rates.items()]
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 4, "slurm")
    ended = mgpt4("resume", "s", "--set", "lr=0.1", "--executor", "slurm")
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    changes = "this changes the result"
    assert errors == [f"error: {names}: {changes}" for names in ("s-a, s-c", "s-b", "s-d")]


def test_what_holds_for_all_runs_of_a_sweep_is_noted_once(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = "the runs directory is on a local disk"
    monkeypatch.setattr(
        "mgpt4_hpc.launch.manage.resume.preflight_findings", lambda *_, **__: ([], [note])
    )
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "abc"]
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 3, "slurm")
    ended = mgpt4("resume", "s", "--gpus", "2", "--executor", "slurm")
    assert len(submissions.asked) == 3 and ended.err.count(note) == 1
    assert ended.err.count("launch.gpus 1 -> 2") == 3, "a change is told of each run"


def test_several_runs_here_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would share this machine's GPUs."""
    runs = [make_run(tmp_path, name) for name in "abc"]
    told: list[str] = []

    def resume(run: RunDir, *_: Any, **__: Any) -> Resumption:
        told.append(f"begin {run.name}")
        return Resumption(run, False, SubmittedRun(run, "local", "1"))

    def wait(waited: Sequence[RunDir], **_: Any) -> None:
        told.append(f"end {waited[0].name}")
        if waited[0].name == "a":
            raise MgptError("a did not finish")

    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume_many.resume_run", resume)
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume_many.wait_for_runs", wait)
    done, errors = resume_many(runs, Overrides(), "local", say=told.append)
    assert told == ["begin a", "end a", "begin b", "end b", "begin c"]
    assert [one.run for one in done] == runs
    assert [error.what for error in errors] == ["a did not finish"]
