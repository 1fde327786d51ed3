"""Fixtures of every suite."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.support.commands import (  # noqa: F401
    elsewhere,
    mgpt4,
    sbatch,
    slurm,
    stage1,
    submissions,
    typed,
    world,
)
from tests.support.tiny_world import TinyWorld, build_tiny_world

_WITH = dict.fromkeys(
    ("tests/integration/test_serve.py", "tests/integration/test_api.py"),
    "tests/integration/test_demo.py",
)
"""A file's tests share fixtures; these three share a minute of training as well."""


class _ByFile(LoadFileScheduling):
    """Keeps what belongs together in one process where ``pytest -n`` has several."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _WITH.get(file, file)


# Each of the thousand processes that the tests start would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure() -> None:
    # A shell's background jobs ignore Ctrl-C, and so would all that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile | None:
    # Not by --dist loadgroup: xdist 3.8 does not see its marks with pytest 9.2, and says nothing.
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Random model, random pictures: a run takes seconds."""
    return build_tiny_world(tmp_path_factory.mktemp("tiny-world") / "world")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A folder for run directories."""
    return tmp_path / "runs"
