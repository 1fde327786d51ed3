"""Tests of ``cli/model/eval_tasks.py``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgpt4_hpc.cli.model import eval_tasks
from mgpt4_hpc.cli.model.eval_tasks import StoredTasks, Tasks
from mgpt4_hpc.evaluation import benchmarks
from mgpt4_hpc.launch.job.part_end import _bytes_written
from mgpt4_hpc.model.generation.chat_model import ModelSource


def test_each_benchmark_is_progress_of_its_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "2"
    written = [_bytes_written(mine)]

    def run_task(python: Path, task: str, endpoint: object, out: Path, **options: object) -> None:
        written.append(_bytes_written(mine))
        out.mkdir()

    monkeypatch.setattr(benchmarks, "run_benchmark", run_task)
    monkeypatch.setattr(eval_tasks, "_install", lambda: Path("python"))
    monkeypatch.setattr(StoredTasks, "_serve", lambda *asked: nullcontext())
    sources = [ModelSource(name, tmp_path, tmp_path / name, "vicuna") for name in ("one", "two")]
    options = SimpleNamespace(limit=None, batch_size=1)
    kept = StoredTasks(tmp_path, "tasks", sources, options, Tasks(("pope", "mme"), None))
    kept.ask([], (2, 2))
    none, first, second = written
    assert none == first < second < _bytes_written(mine)
    assert _bytes_written(tmp_path / "1") == 0
    assert kept.num_missing([]) == 1
