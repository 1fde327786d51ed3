"""The first line of the templates at a requeue: storage that stumbles does not end the run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mgpt4_hpc import retry
from mgpt4_hpc.errors import UnsafeRun
from mgpt4_hpc.launch.submit import from_batch_script
from mgpt4_hpc.run_dir import RunDir, read_json
from tests.unit.launch.fakes import FakeScontrol


@pytest.fixture(autouse=True)
def requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.retry_storage, "__kwdefaults__", _at_once())
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)


def _at_once() -> dict[str, object]:
    usual = retry.retry_storage.__kwdefaults__
    return {**usual, "sleep": lambda seconds: None, "say": lambda told: None}


def start(run: RunDir) -> Result:
    command = ["--config", "toy-stage1", "--run-dir", str(run.path)]
    return CliRunner().invoke(from_batch_script.command, command)


def test_it_notes_which_job_works_on_the_run(run: RunDir) -> None:
    assert start(run).exit_code == 0
    assert read_json(run.slurm / "job.json")["job_id"] == "17"


def test_a_full_quota_keeps_no_job_from_its_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **further: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(from_batch_script, "note_job", full)
    done = start(run)
    assert done.exit_code == 0 and "cannot be noted" in done.stderr


def test_a_folder_that_storage_does_not_show_brings_the_job_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, scontrol: FakeScontrol
) -> None:
    def stale(path: Path) -> None:
        error = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        raise UnsafeRun(f"{path} cannot be looked through") from error

    monkeypatch.setattr(from_batch_script, "assert_owned", stale)
    scontrol.says(restarts=1)
    assert start(run).exit_code == 75
    assert scontrol.requeues == ["requeue 17"]


def test_a_folder_that_is_not_safe_stays_refused(run: RunDir, scontrol: FakeScontrol) -> None:
    run.path.chmod(0o777)
    scontrol.says(restarts=1)
    assert isinstance(start(run).exception, UnsafeRun)
    assert scontrol.calls == []


def test_a_node_without_the_mount_makes_no_run_of_its_own(
    tmp_path: Path, scontrol: FakeScontrol
) -> None:
    gone = RunDir(tmp_path / "not-mounted" / "run")
    scontrol.says(restarts=1)
    done = start(gone)
    assert done.exit_code == 75 and "not there on this node" in done.stderr
    assert scontrol.requeues == ["requeue 17"] and not gone.path.parent.exists()
