"""Fixtures of this folder."""

from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.support.resuming import timed_out_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return timed_out_run(tmp_path / "runs")
