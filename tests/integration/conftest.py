"""What several of these tests need and what takes a minute to make: the demo's trained runs."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import Shell, has_run
from tests.support.shown import assert_schema

DEMO = "mgpt4 demo --dir demo --json > demo.json"


@dataclass(frozen=True)
class Demo:
    """A finished demo.

    Attributes:
        folder: its runs, toy-stage1 and toy-stage2.
        result: what it printed as JSON.
    """

    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """``mgpt4 demo`` as docs/cli.md shows it; xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo"
    folder.mkdir(exist_ok=True)
    shell, finished = Shell(folder, {}), folder / "finished"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shell.run(DEMO, timeout_s=500)
            finished.touch()
        else:
            has_run(DEMO)
    told = json.loads((folder / "demo.json").read_text())
    assert_schema("demo", told)
    return Demo(shell.folder / "demo", told)


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> Path:
    """Folder with the demo's runs; ``MGPT4_TEST_DEMO`` names one that is there already."""
    if earlier := os.environ.get("MGPT4_TEST_DEMO"):
        return Path(earlier)
    found: Demo = request.getfixturevalue("demo")
    return found.folder
