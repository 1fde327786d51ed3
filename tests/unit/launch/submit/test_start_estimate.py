"""Slurm's estimate of a start, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path

from tests.cli.fakes import Mgpt4


def test_slurms_estimate_is_a_table_or_json(mgpt4: Mgpt4, stage1: Path, sbatch: Path) -> None:
    asked = mgpt4("submit", "--config", stage1, "--name", "x", "--test-only", "--json")
    (told,) = asked.json
    assert told.pop("in_s") > 0
    assert told == {
        "job": "x",
        "start": "2030-01-02T03:04:05",
        "processors": 8,
        "nodes": "n1",
        "partition": "a100",
        "after": None,
    }
    assert "2030-01-02T03:04:05" in mgpt4("submit", "--config", stage1, "--test-only").out
    assert list(Path().iterdir()) == []


def test_there_is_none_without_slurm(mgpt4: Mgpt4, stage1: Path) -> None:
    ended = mgpt4("submit", "--config", stage1, "--test-only", "--executor", "local")
    assert ended.code == 2 and "the executor is local" in ended.err
