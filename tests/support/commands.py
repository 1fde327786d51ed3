"""Fixtures for tests that call commands in this process; tests/conftest.py imports them."""

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.cli import main
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.cluster import parse_slurm_site
from mgpt4_hpc.launch.submit import preflight_slurm
from mgpt4_hpc.launch.submit.preflight_slurm import Cluster
from tests.cli.fakes import Ended, FakeSlurm, Mgpt4
from tests.support.resuming import Submissions
from tests.support.tiny_world import TinyWorld, build_tiny_world

PARTITIONS = "PartitionName=a100 Default=YES MaxTime=2-00:00:00 State=UP TotalNodes=1\n"
NODES = "NodeName=n1 CPUTot=64 Gres=gpu:a100:4 State=IDLE Partitions=a100\n"


@pytest.fixture
def stage1(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_config(tmp_path_factory.mktemp("config") / "stage1.yaml", 1)


@pytest.fixture
def sbatch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that takes every job as number 42; the file to which sbatch notes its arguments."""
    folder = tmp_path_factory.mktemp("bin")
    calls = folder / "calls"
    (folder / "sbatch").write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        'case "$1" in\n'
        '--test-only) echo "sbatch: Job 9 to start at 2030-01-02T03:04:05 using 8 processors on '
        'nodes n1 in partition a100" >&2;;\n'
        "--parsable) echo 42;;\n"
        "*) echo Submitted batch job 42;;\nesac\n"
    )
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    seen = Cluster(parse_slurm_site("MaxArraySize = 1001\n", PARTITIONS, NODES))
    monkeypatch.setattr(preflight_slurm, "ask_cluster", lambda: seen)
    return calls


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in a folder of its own, so that ``runs`` is empty and stray files are seen."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give lines on stdin, as typed."""

    def type_lines(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return type_lines


@pytest.fixture
def mgpt4(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> Mgpt4:
    """Run ``mgpt4 ARGUMENTS`` in this process."""
    for name in ("MGPT4_RUNS_DIR", "MGPT4_SITE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        # Its handler holds the stderr of the test that imported it; without one logging takes ours.
        logging.getLogger("transformers").handlers.clear()
        code = 0
        try:
            main.main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """No Slurm command is started; the test sets their answers."""
    fake = FakeSlurm()
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", fake)
    real = commands.run_slurm

    def answer(command: list[str], **options: Any) -> str:
        # `sbatch` is a script of the test's own, found in PATH.
        return real(command, **options) if command[0] == "sbatch" else fake(command, **options)

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.run_slurm", answer)
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.cluster_name", lambda: fake.cluster)
    return fake


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return build_tiny_world(tmp_path_factory.mktemp("world"), samples=16)


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> Submissions:
    """`resume` submits nothing; the stand-in records what it was called with."""
    stand_in = Submissions()
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.submit_run", stand_in)
    monkeypatch.setattr(
        "mgpt4_hpc.launch.manage.resume.preflight_findings", lambda *_, **__: ([], [])
    )
    return stand_in
