"""Tests of ``launch/job/start_check.py``."""

from __future__ import annotations

import errno
import sys

import pytest

from mgpt4_hpc.launch.job import start_check
from mgpt4_hpc.launch.job.start_check import GO_ON, main, why_leave
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger
from tests.unit.launch.fakes import FakeScontrol

AGAIN = JobStart("slurm", "17", 1)


def test_a_start_of_what_is_over_is_not_wanted(run: RunDir) -> None:
    assert why_leave(run, AGAIN) is None
    request_cancel(run, "16")
    assert why_leave(run, AGAIN) is None
    request_cancel(run, "17")
    assert why_leave(run, AGAIN) == (75, "a run was cancelled")
    run.failed.write_text("no\n")
    assert why_leave(run, AGAIN) == (70, "a run was given up: no\n")
    assert why_leave(run, JobStart("slurm", "18", 0)) is None
    Ledger(run.ledger, run.claim_attempt({"job_id": "17"})).event(
        Kind.END, cause="finished", step=5, exit_code=0
    )
    assert why_leave(run, JobStart("slurm", "18", 0)) == (
        0,
        "a run is finished: nothing is left to do",
    )


@pytest.fixture
def check(run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What the batch script's line gets: the exit code, and the code that was printed."""
    for name, value in {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["start_check", str(run.path)])

    def call() -> tuple[int, str]:
        code = main()
        return code, capsys.readouterr().out

    return call


def updates(scontrol: FakeScontrol) -> list[str]:
    return [call.removeprefix("update ") for call in scontrol.calls if call.startswith("update")]


def test_a_start_that_is_wanted_goes_on(run: RunDir, scontrol: FakeScontrol, check) -> None:
    assert check() == (GO_ON, "")
    assert scontrol.calls == []


def test_a_folder_that_cannot_be_read_is_left_to_its_next_reader(
    run: RunDir, check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: RunDir) -> None:
        raise OSError(errno.EIO, "stumbles")

    monkeypatch.setattr(start_check, "read_facts", fail)
    monkeypatch.setattr(start_check, "_PAUSES_S", ())
    assert check() == (GO_ON, "")


def test_a_start_of_a_finished_run_releases_what_waits_and_ends(
    run: RunDir, scontrol: FakeScontrol, check
) -> None:
    scontrol.waiting.write_text("18|afterok:17(unfulfilled)\n")
    Ledger(run.ledger, run.claim_attempt({"job_id": "17"})).event(
        Kind.END, cause="finished", step=5, exit_code=0
    )
    scontrol.says(restarts=1)
    assert check() == (0, "0\n")
    assert updates(scontrol) == ["JobId=18 Dependency=", "JobId=17 Requeue=0"]


@pytest.mark.parametrize(("code", "what"), [("75", "CANCEL"), ("70", "FAILED")])
def test_a_start_of_a_run_that_is_over_stays_away_and_releases_nothing(
    run: RunDir, scontrol: FakeScontrol, check, code: str, what: str
) -> None:
    scontrol.waiting.write_text("18|afterok:17(unfulfilled)\n")
    if what == "CANCEL":
        request_cancel(run, "17")
    else:
        run.failed.write_text("no\n")
    scontrol.says(restarts=1)
    assert check() == (0, f"{code}\n")
    assert updates(scontrol) == ["JobId=17 Requeue=0"]
