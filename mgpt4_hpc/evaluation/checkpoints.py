"""Scores and answers of a run's checkpoints, side by side: what TensorBoard holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mgpt4_hpc.evaluation.results import read_answers
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.report import Table, read_curves, read_texts

_CHECKPOINTS = 6
"""Columns of a table at most: the first, the last, and some between."""
_IMAGES = 8
_ANSWERS = "_answers"


def checkpoint_tables(run: RunDir) -> list[Table]:
    """A table of scores, and per task one of answers; none where nothing was evaluated."""
    scores: dict[str, dict[int, str]] = {}
    answers: dict[str, dict[int, str]] = {}
    for folder in (run.tensorboard, run.tensorboard / "eval"):
        if not folder.is_dir():
            continue
        for tag, points in read_curves(folder).items():
            if tag.startswith(tags.EVAL):
                known = scores.setdefault(tag.removeprefix(tags.EVAL), {})
                known |= {step: f"{value:.4g}" for step, value in points}
        for tag, texts in read_texts(folder).items():
            if tag.startswith(tags.EVAL) and tag.endswith(_ANSWERS):
                name = tag.removeprefix(tags.EVAL).removesuffix(_ANSWERS)
                answers.setdefault(name, {}).update(texts)
    found = [_table("Scores by checkpoint", "score", scores)] if scores else []
    for name, by_step in sorted(answers.items()):
        by_image: dict[str, dict[int, str]] = {}
        for step, text in by_step.items():
            for image, answer in list(read_answers(text).items())[:_IMAGES]:
                by_image.setdefault(image, {})[step] = answer
        found.append(_table(f"Answers by checkpoint: {name}", "image", by_image))
    return found


def _table(caption: str, what: str, cells: Mapping[str, Mapping[int, str]]) -> Table:
    """One row per name, one column per step."""
    steps = _spread(sorted({step for by_step in cells.values() for step in by_step}))
    rows = [
        (name, *(by_step.get(step, "") for step in steps))
        for name, by_step in sorted(cells.items())
    ]
    return Table(caption, (what, *(f"step {step}" for step in steps)), rows)


def _spread(steps: Sequence[int]) -> list[int]:
    if len(steps) <= _CHECKPOINTS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(place * last / (_CHECKPOINTS - 1))] for place in range(_CHECKPOINTS)]
