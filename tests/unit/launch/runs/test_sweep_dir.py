"""Tests of ``launch/runs/sweep_dir.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.errors import NoSuchRun, RunLocked
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep, find_runs, note_jobs
from mgpt4_hpc.run_dir import RunDir, read_json
from tests.unit.launch.sweeps import _two


@pytest.fixture(params=[0o022, 0o002], ids=["umask 022", "umask 002"])
def two(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[RunDir]]:
    before = os.umask(request.param)
    yield _two(tmp_path)
    os.umask(before)


def test_a_sweeps_name_stands_for_its_runs(two: list[RunDir], tmp_path: Path) -> None:
    assert find_runs(["s"], tmp_path) == two
    assert find_runs(["s-seed2", "s"], tmp_path) == [two[1], two[0]], "each once"
    with pytest.raises(NoSuchRun, match=r"no run 't' in .*; no run 'u' in "):
        find_runs(["t", "s", "u"], tmp_path)
    with pytest.raises(NoSuchRun):
        find_runs(["../.sweeps/s"], tmp_path)
    (two[0].identity_file).unlink()
    assert find_runs(["s"], tmp_path) == two[1:], "one that was removed is not missed"


def test_there_is_one_of_a_name(two: list[RunDir], tmp_path: Path) -> None:
    with pytest.raises(RunLocked, match="exists already"):
        create_sweep(SweepDir.of("s", tmp_path), two, [{}, {}], "slurm")
    assert find_runs(["s"], tmp_path) == two


def test_each_run_knows_its_task(two: list[RunDir], tmp_path: Path) -> None:
    sweep = SweepDir.of("s", tmp_path)
    note_jobs(sweep, two, "17")
    assert [read_json(run.slurm / "job.json")["job_id"] for run in two] == ["17_0", "17_1"]
    assert read_json(sweep.file)["job_id"] == "17"
