"""What several of these tests need and what takes a minute to make: the demo's trained runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import ENVIRONMENT
from tests.support.shown import assert_schema


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
    """``mgpt4 demo`` as a user runs it."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "demo", "--dir", str(folder), "--json"],
        env=ENVIRONMENT,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert_schema("demo", told)
    return Demo(folder, told)


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> Path:
    """Folder with the demo's runs; ``MGPT4_TEST_DEMO`` names one that is there already."""
    if earlier := os.environ.get("MGPT4_TEST_DEMO"):
        return Path(earlier)
    found: Demo = request.getfixturevalue("demo")
    return found.folder
