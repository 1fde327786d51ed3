"""``cancel``: the right commands to Slurm, the right process here, and the mark."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs import cancel_request as cancel_mark_module
from mgpt4_hpc.launch.runs.cancel_request import (
    cancel_requested,
)
from mgpt4_hpc.run_dir import RunDir, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted
from tests.support.processes import sleeper


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return submitted(make_run(tmp_path / "runs"))


def test_a_running_job(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    slurm.squeue = squeue_row("17", "RUNNING")
    ended = mgpt4("cancel", "one", "--json")
    assert ended.code == 0
    assert ended.json[0]["done"]
    assert slurm.called("scancel") == [["scancel", "17"]]
    assert cancel_requested(run)
    assert cancel_requested(run, "17")
    assert not cancel_requested(run, "18")


def test_save_first(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    slurm.squeue = squeue_row("17", "RUNNING")
    assert mgpt4("cancel", "one", "--save").code == 0
    assert slurm.called("scontrol") == [["scontrol", "update", "JobId=17", "Requeue=0"]]
    assert slurm.called("scancel") == [["scancel", "--signal=USR2", "17"]]
    assert cancel_requested(run, "17")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, value: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(cancel_mark_module, "write_json", write)


def test_what_waits_has_nothing_to_save(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    slurm.squeue = squeue_row("17", "PENDING", "Priority")
    assert mgpt4("cancel", "one", "--save").code == 0
    assert slurm.called("scancel") == [["scancel", "17"]]


def test_several_with_one_question(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    for number in range(3):
        submitted(make_run(tmp_path / "runs", f"run{number}"), str(number))
    slurm.squeue = "".join(squeue_row(str(number), "RUNNING") for number in range(3))
    assert mgpt4("cancel", "run0", "run1", "run2").code == 0
    assert len(slurm.called("squeue")) == 1
    assert len(slurm.called("scancel")) == 3


def test_nothing_to_cancel(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    attempt(run, 1, first=1, last=100, cause="finished")
    ended = mgpt4("cancel", "one")
    assert ended.code == 0
    assert ended.out == "one: nothing to cancel: finished\n"
    assert not slurm.called("scancel")
    assert not cancel_requested(run)


def test_slurm_is_down(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("cancel", "one")
    assert ended.code == 5
    assert "nothing was cancelled: `squeue` cannot reach Slurm" in ended.err
    assert not cancel_requested(run)


def test_all_names_are_checked_first(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    slurm.squeue = squeue_row("17", "RUNNING")
    assert mgpt4("cancel", "one", "other").code == 6
    assert slurm.calls == []


@pytest.fixture
def controller(run: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the run's local controller."""
    process = sleeper("mgpt4_hpc.launch.local", str(run.slurm))
    submitted(run, str(process.pid), executor="local")
    yield process
    process.kill()
    process.wait()


def test_local(mgpt4: Mgpt4, run: RunDir, controller: subprocess.Popen[bytes]) -> None:
    ended = mgpt4("cancel", "one")
    assert ended.code == 0
    assert f"process {controller.pid} was asked to save and end" in ended.out
    assert controller.wait(timeout=60) == -signal.SIGINT
    assert cancel_requested(run, str(controller.pid))


def test_local_with_a_full_quota(
    mgpt4: Mgpt4, run: RunDir, controller: subprocess.Popen[bytes], full: None
) -> None:
    assert "asked to save and end (no mark could be left" in mgpt4("cancel", "one").out
    assert controller.wait(timeout=60) == -signal.SIGINT


def test_on_another_machine(mgpt4: Mgpt4, run: RunDir) -> None:
    job = {"executor": "local", "job_id": "4711", "submitted": 1e9, "host": "elsewhere"}
    write_json(run.slurm / "job.json", job)
    lately = Clock(time.time() - 30)
    attempt(run, 1, first=1, last=5, job_id="4711", executor="local", clock=lately)
    ended = mgpt4("cancel", "one")
    assert ended.code == 1
    assert "ssh elsewhere mgpt4 cancel" in ended.err
