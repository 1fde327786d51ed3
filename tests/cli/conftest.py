import logging
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.cli import main
from mgpt4_hpc.launch.slurm import commands
from tests.cli.fakes import Ended, FakeSlurm, Mgpt4
from tests.support.tiny_world import TinyWorld, build_tiny_world


@pytest.fixture
def mgpt4(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mgpt4:
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
    """No Slurm command is started; what they would say is set by the test."""
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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, so that ``runs`` is empty and stray files are seen."""
    monkeypatch.chdir(tmp_path)
