"""Making and submitting runs: whole or not at all, and once at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import (
    MgptError,
    SlurmRejected,
    SlurmUnconfirmed,
    SlurmUnreachable,
    StorageTrouble,
)
from mgpt4_hpc.launch.job.launcher_script import write_shim
from mgpt4_hpc.launch.submit import submit_run as submit_module
from mgpt4_hpc.launch.submit.batch_script import setup_lines
from mgpt4_hpc.launch.submit.submit_run import complete_run, create_run, submit_run
from mgpt4_hpc.run_dir import RunDir, read_json, write_json

RESOLVED = load_config("stage1-vicuna7b")


def test_a_run_of_older_code_gets_the_identity_that_its_job_looks_for(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)
    older = {key: value for key, value in run.identity().items() if key != "id"}
    write_json(run.identity_file, older)
    complete_run(run, RESOLVED.config)
    (line,) = (line for line in setup_lines(run, RESOLVED.config.launch) if "grep" in line)
    found = subprocess.run(line, shell=True, check=False)  # noqa: S602
    assert found.returncode == 0, line


def test_a_run_holds_all_that_its_job_needs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)
    identity = run.identity()
    assert identity["config_digest"] == RESOLVED.digest and len(identity["code_digest"]) == 32
    assert (run.code / "mgpt4_hpc" / "launch" / "task.py").is_file()
    assert os.access(run.slurm / "python", os.X_OK)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), MgptError("no"), KeyboardInterrupt]
)
def test_half_a_run_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(submit_module, "take_snapshot", fail)
    run = RunDir(tmp_path / "run")
    with pytest.raises((MgptError, KeyboardInterrupt)):
        create_run(run, RESOLVED)
    assert not run.path.exists()


def test_half_a_copy_of_the_code_does_not_pass_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    run.create({"name": "run"})

    def half(target: Path) -> str:
        (target / "mgpt4_hpc").mkdir(parents=True)
        (target / "mgpt4_hpc" / "half.py").touch()
        raise MgptError("the code could not be copied: Disk quota exceeded")

    with monkeypatch.context() as full:
        full.setattr(submit_module, "take_snapshot", half)
        with pytest.raises(MgptError):
            complete_run(run)
    complete_run(run)
    assert (run.code / "mgpt4_hpc" / "launch" / "task.py").is_file()
    assert not list(run.path.rglob("half.py"))


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.slow
def test_what_a_job_needs_is_on_disk_before_it_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = RunDir(tmp_path / "run"), tmp_path / "seen"
    listing = f"find {run.path} -type f -printf '%i %P\\n' > {seen}"
    fake_sbatch(tmp_path / "bin", monkeypatch, f"{listing}; echo Submitted batch job 42")
    synced: set[int] = set()
    fsync = os.fsync

    def note(handle: int) -> None:
        fsync(handle)
        if not seen.exists():
            synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    create_run(run, RESOLVED)
    submit_run(run, RESOLVED, "slurm")
    lines = seen.read_text().splitlines()
    there = {name: int(inode) for inode, name in map(str.split, lines)}
    assert {"config.yaml", "run.json", "slurm/python", "code/mgpt4_hpc/__init__.py"} <= there.keys()
    # submitit makes its two files in the call that submits; a damaged one is made again.
    ours = {name for name in there if not re.fullmatch(r"slurm/(\..*\.sh|\w+\.pkl)", name)}
    assert [name for name in ours if there[name] not in synced] == []


@pytest.mark.slow
def test_an_enclosing_jobs_variables_do_not_reach_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, f"env > {tmp_path}/env; echo Submitted batch job 42")
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)
    run.failed.write_text("of before")
    job = submit_run(run, RESOLVED, "slurm")
    assert (job.job_id, job.executor) == ("42", "slurm")
    assert read_json(run.slurm / "job.json")["job_id"] == "42"
    assert not run.failed.exists()
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert seen["SLURM_CONF"] == "/etc/slurm.conf"
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION", "SUBMITIT_EXECUTOR"} & set(seen)
    assert os.environ["SLURM_JOB_ID"] == "x", "ours stay as they were"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "cls"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account", SlurmRejected),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", SlurmUnreachable),
        ("sbatch: error: Batch job submission failed: Socket timed out", SlurmUnconfirmed),
    ],
)
def test_a_job_that_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, cls: type[MgptError]
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, f"echo '{message}' >&2; exit 1")
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)
    with pytest.raises(
        cls, match=message.partition("error: ")[2].partition("(")[0].strip()
    ) as caught:
        submit_run(run, RESOLVED, "slurm")
    assert type(caught.value) is cls
    assert not (run.slurm / "job.json").exists()


@pytest.fixture
def another_thread() -> Iterator[None]:
    """One that takes signals, as those of libraries do."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("another_thread")
def test_ctrl_c_waits_until_the_jobs_id_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, "kill -INT $PPID; echo Submitted batch job 42")
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)
    # A training run in this process, of another test, may have left its own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            submit_run(run, RESOLVED, "slurm")
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_json(run.slurm / "job.json")["job_id"] == "42"


@pytest.mark.slow
def test_a_job_that_cannot_be_noted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(tmp_path / "bin", monkeypatch, "echo Submitted batch job 42")
    run = RunDir(tmp_path / "run")
    create_run(run, RESOLVED)

    def full(*args: object, **further: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(submit_module, "note_job", full)
    with pytest.raises(StorageTrouble, match="job 42 was submitted") as caught:
        submit_run(run, RESOLVED, "slurm")
    assert "scancel 42" in str(caught.value)


# -- two commands at once ----------------------------------------------------------------------


def test_a_run_that_torchrun_made_gets_what_a_job_needs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create({"name": "run"})
    complete_run(run)
    assert (run.code / "mgpt4_hpc" / "launch" / "task.py").is_file()
    assert os.access(run.slurm / "python", os.X_OK)
    write_shim(run.slurm / "python", "/an/environment/that/moved/bin/python")
    (run.code / "kept").touch()
    complete_run(run)
    assert sys.executable in (run.slurm / "python").read_text()
    assert (run.code / "kept").exists(), "the code stays what the run began with"
