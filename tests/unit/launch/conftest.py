"""Fixtures for everything around a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.job import requeue
from mgpt4_hpc.run_dir import RunDir
from tests.unit.launch.fakes import FakeScontrol


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScontrol:
    monkeypatch.setattr(requeue, "_PAUSE_S", 0.0)
    return FakeScontrol(tmp_path / "bin", monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory with a configuration, and nothing done yet."""
    made = RunDir(tmp_path / "runs" / "a run")
    made.create({"name": "one"})
    budgets = {"launch.max_crashes": 1, "launch.max_stalled_attempts": 2}
    write_config(made.config_file, load_config("stage1-vicuna7b", overrides=budgets))
    return made
