"""Tests of ``evaluation/stored_answers.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.stored_answers import StoredAnswers, begin_answers

EXAMPLES = [Example(name, name.encode()) for name in ("1", "2")]
ROWS = [
    {
        "checkpoint": "a",
        "task": task,
        "image": example.name,
        "digest": example.digest,
        "precision": "fp32",
        "text": "é \udce9\n|",
        "stopped": True,
    }
    for example in EXAMPLES
    for task in ("detail", "poem")
]


@pytest.mark.slow
def test_a_kill_at_any_byte_costs_what_was_not_whole(tmp_path: Path) -> None:
    StoredAnswers(tmp_path, "failure").append(ROWS)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        stored = StoredAnswers(tmp_path, "failure")
        lost = [
            row
            for number, row in enumerate(ROWS)
            if not stored.answer("a", row["task"], EXAMPLES[number // 2])
        ]
        assert length > len(whole) - 2 or lost
        stored.append(lost)
        again = StoredAnswers(tmp_path, "failure")
        assert again.missing(["a"], EXAMPLES) == []
        assert again.answer("a", "poem", EXAMPLES[1]).text == ROWS[0]["text"]


def test_an_answer_belongs_to_the_content_of_an_image(tmp_path: Path) -> None:
    StoredAnswers(tmp_path, "failure").append(ROWS)
    stored = StoredAnswers(tmp_path, "failure")
    replaced = Example("2", b"another image in place of the second, or of its name elsewhere")
    assert stored.missing(["a"], [*EXAMPLES, replaced]) == [replaced]


def test_a_broken_image_stays_out_and_one_that_cannot_be_read_does_not(tmp_path: Path) -> None:
    broken, lost = Example("broken", b"GIF"), Example("lost", tmp_path / "lost.png")
    stored = StoredAnswers(tmp_path, "failure")
    stored.append([{"digest": broken.digest, "left_out": "it is no image"}])
    assert StoredAnswers(tmp_path, "failure").missing(["a"], [broken, lost]) == []
    assert "cannot read" in (stored.why_left_out(lost) or "")
    (tmp_path / "lost.png").write_bytes(b"back again")
    assert stored.missing(["a"], [broken, lost]) == [lost]


def test_other_questions_are_refused_and_checkpoints_kept(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    assert begin_answers(folder, {"limit": 3}, {"step-1": "d"}) == {"step-1": "d"}
    assert begin_answers(folder, {"limit": 3}, {"step-2": "e"}) == {"step-1": "d"}
    with pytest.raises(ConfigError, match="limit: 3 there, 4 now"):
        begin_answers(folder, {"limit": 4}, {"step-1": "d"})
