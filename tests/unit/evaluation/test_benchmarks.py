"""Tests of ``evaluation/benchmarks.py``, with a program that stands in for lmms-eval's Python."""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.evaluation.benchmarks import ModelEndpoint, read_results, run_benchmark

SCORES = '{"results": {"pope": {"accuracy,none": 0.5}}}'


def run(tmp_path: Path, ends_with: int, answer: str, *, at_once: int = 1) -> Path:
    """Have processes run a task whose program writes one answer; the folder of its results."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != --output_path ]; do shift; done\n'
        'mkdir -p "$2/model"\n'
        f"mkdir {tmp_path}/started-$$\n"
        f"until [ $(ls -d {tmp_path}/started-* | wc -l) = {at_once} ]; do sleep 0.05; done\n"
        f"echo '{SCORES}' > \"$2/model/x_results.json\"\n"
        f'echo \'{{"filtered_resps": ["{answer}"]}}\' > "$2/model/x_samples_pope.jsonl"\n'
        "echo no such task\n"
        f"exit {ends_with}\n"
    )
    python.chmod(0o700)
    endpoint, out = ModelEndpoint("http://127.0.0.1:9/v1", "key", "toy"), tmp_path / "pope"
    task = partial(
        run_benchmark, python, "pope", endpoint, out, task_folder=None, limit=3, num_concurrent=1
    )
    others = [get_context("fork").Process(target=task) for _ in range(at_once - 1)]
    for other in others:
        other.start()
    task()
    for other in others:
        other.join()
        assert other.exitcode == 0
    return out


def test_results_appear_once_every_question_has_an_answer(tmp_path: Path) -> None:
    out = run(tmp_path, 0, "yes")
    assert (out / "model" / "x_results.json").exists()
    (out / "model" / "x_results.json").unlink()
    with pytest.raises(MgptError, match="pope has no results"):
        read_results("toy", [out])


def test_two_processes_on_one_task_leave_each_other_alone(tmp_path: Path) -> None:
    out = run(tmp_path, 0, "yes", at_once=2)
    assert (out / "model" / "x_results.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("ends_with", "answer", "why"),
    [
        (1, "yes", "could not do the task pope: no such task"),
        (0, "[LMMS_EVAL_REQUEST_FAILED]", "did not answer 1 questions of pope"),
    ],
)
def test_a_failure_leaves_no_results(tmp_path: Path, ends_with: int, answer: str, why: str) -> None:
    with pytest.raises(MgptError, match=why):
        run(tmp_path, ends_with, answer)
    assert not (tmp_path / "pope").exists()
