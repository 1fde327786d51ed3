"""Tests of ``evaluation/stored_answers.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.stored_answers import StoredAnswers, begin

ROWS = [
    {"checkpoint": "a", "task": task, "image": image, "text": "é \udce9\n|", "stopped": True}
    for image in ("1", "2")
    for task in ("detail", "poem")
]
EXAMPLES = [Example(name, b"") for name in ("1", "2")]


def test_a_kill_at_any_byte_costs_what_was_not_whole(tmp_path: Path) -> None:
    StoredAnswers(tmp_path, "failure").append(ROWS)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        stored = StoredAnswers(tmp_path, "failure")
        lost = [row for row in ROWS if not stored.answer("a", row["task"], row["image"])]
        assert length > len(whole) - 2 or lost
        stored.append(lost)
        again = StoredAnswers(tmp_path, "failure")
        assert (
            again.missing(["a"], EXAMPLES) == []
            and again.answer("a", "poem", "2").text == (ROWS[0]["text"])
        )


def test_other_questions_are_refused_and_checkpoints_kept(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    assert begin(folder, {"limit": 3}, ["step-1"]) == ["step-1"]
    assert begin(folder, {"limit": 3}, ["step-2"]) == ["step-1"]
    with pytest.raises(ConfigError, match="limit: 3 there, 4 now"):
        begin(folder, {"limit": 4}, ["step-1"])
