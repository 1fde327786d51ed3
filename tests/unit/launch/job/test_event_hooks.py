"""Commands that are told what became of a run: once, without a shell, and without harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.job import event_hooks
from mgpt4_hpc.launch.job.event_hooks import hook_event, run_hooks
from mgpt4_hpc.launch.job.requeue import apply_decision
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision
from mgpt4_hpc.launch.job.supervisor import decide_after_exit
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause
from tests.unit.launch.fakes import FakeScontrol

START = JobStart("slurm", "17", 0)


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def listening(run: RunDir, *commands: str, timeout_s: float = 20.0) -> None:
    settings = {"launch.on_event": commands, "launch.on_event_timeout_s": timeout_s}
    write_config(run.config_file, load_config("stage1-vicuna7b", overrides=settings))


@pytest.fixture
def heard(run: RunDir, tmp_path: Path) -> Path:
    """A file to which the run's command writes what it is told."""
    file = tmp_path / "heard"
    listening(run, str(program(tmp_path / "listen", f"cat >> {file}")))
    return file


def events(heard: Path) -> list[dict]:
    return [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else []


@pytest.mark.parametrize(
    ("cause", "action", "event"),
    [
        (Cause.PREEMPTED, Action.REQUEUE, "preempted"),
        (Cause.REQUEUED, Action.LEAVE, "preempted"),
        (Cause.TIME_LIMIT, Action.REQUEUE, "requeued"),
        (Cause.CRASHED, Action.REQUEUE, "requeued"),
        (Cause.CRASHED, Action.GIVE_UP, "failed"),
        (Cause.UNKNOWN, Action.ASK, "resubmit-needed"),
        (Cause.CANCELLED, Action.LEAVE, None),
    ],
)
def test_each_decision_has_its_event(cause: Cause, action: Action, event: str | None) -> None:
    assert hook_event(Decision(cause, action, "why")) == event


def test_a_requeue_is_told_after_slurm_accepted_it(
    run: RunDir, heard: Path, scontrol: FakeScontrol
) -> None:
    apply_decision(run, START, Decision(Cause.PREEMPTED, Action.REQUEUE, "preempted: it goes on"))
    (event,) = events(heard)
    assert scontrol.requeues == ["requeue 17"]
    assert (event["event"], event["cause"], event["job_id"]) == ("preempted", "preempted", "17")
    assert (event["run"], event["run_dir"]) == (run.name, str(run.path))
    assert event["max_steps"] == load_config("stage1-vicuna7b").config.train.max_steps
    assert event["command"] is None


def test_a_requeue_that_slurm_refused_needs_a_person_and_says_how(
    run: RunDir, heard: Path, scontrol: FakeScontrol
) -> None:
    scontrol.refusal.write_text("Requested operation is not allowed\n")
    scontrol.says()
    apply_decision(run, START, Decision(Cause.PREEMPTED, Action.REQUEUE, "preempted"))
    (event,) = events(heard)
    assert event["event"] == "resubmit-needed"
    assert event["command"] == f"mgpt4 resume '{run.path}'"


def test_what_a_rank_left_behind_is_told_by_the_batch_script_once(run: RunDir, heard: Path) -> None:
    run.failed.write_text("no such shard\n")
    decide_after_exit(run, START, 70)
    decide_after_exit(run, START, 70)
    assert [(e["event"], e["reason"]) for e in events(heard)] == [("failed", "no such shard")]
    decide_after_exit(run, JobStart("slurm", "18", 0), 70)
    assert len(events(heard)) == 2, "another job is another event"


def test_no_word_of_a_command_reaches_a_shell(run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = program(tmp_path / "p", f'echo "$@" > {out}')
    listening(run, f"{script} '$(touch x)' `id` ; true")
    run_hooks(run, START, "failed", "crashed", "'; touch y; $(touch z)")
    assert out.read_text() == "$(touch x) `id` ; true\n"
    assert not {"x", "y", "z"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exit 3", "ended with code 3"),
        ("exec 0<&-; exit 0", ""),
        ("sleep 60 & sleep 60", "was killed, for it took longer than 0.7 s"),
        ("trap '' TERM; sleep 60", "was killed, for it took longer than 0.7 s"),
    ],
)
def test_a_command_that_fails_or_hangs_does_no_harm(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str], body: str, told: str
) -> None:
    file = tmp_path / "heard"
    good = program(tmp_path / "good", f"cat > {file}")
    listening(run, str(program(tmp_path / "bad", body)), str(good), timeout_s=0.7)
    run_hooks(run, START, "finished", "finished", "")
    printed = capfd.readouterr().out
    assert told in printed if told else printed == ""
    assert events(file)[0]["event"] == "finished", "the other one was told all the same"


@pytest.mark.parametrize("command", ["/nowhere/to/be/found", "/dev/null"])
def test_a_command_that_cannot_start_is_only_mentioned(
    run: RunDir, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    listening(run, command)
    run_hooks(run, START, "failed", "crashed", "")
    assert "cannot be started" in capfd.readouterr().out


def test_a_run_that_cannot_be_read_is_only_mentioned(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    run.config_file.write_text("stage: 9\n")
    run_hooks(run, START, "failed", "crashed", "")
    assert "could not be sent" in capfd.readouterr().out


def test_a_full_disk_does_not_silence_it(
    run: RunDir, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_hooks.os, "open", full)
    run_hooks(run, START, "failed", "crashed", "")
    assert len(events(heard)) == 1
