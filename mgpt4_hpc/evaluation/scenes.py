"""Right or wrong for the toy world: does an answer name the main object of a held-out scene?

A scene is a record of ``heldout/scenes.json``: ``image`` (file), ``main`` (the largest object's
``size``, ``colour``, ``shape``, ``row``, ``column``), ``objects``, ``background``, ``reference``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mgpt4_hpc.evaluation.failures import is_incomplete, is_repetitive, words_of
from mgpt4_hpc.text_files import parse_json

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


def load_scenes(path: Path) -> list[dict[str, Any]]:
    """The held-out truth, in the order of its images."""
    scenes: list[dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
    return scenes


def first_object(answer: str) -> tuple[str, str] | None:
    """Colour and shape of the first object that an answer names, as "... red circle ..."."""
    for colour, shape in pairwise(words_of(answer)):
        if colour in COLOURS and shape in SHAPES:
            return colour, shape
    return None


def main_object_right(answer: str, scene: Mapping[str, Any]) -> bool:
    """Whether the first object that the answer names has the main object's colour and shape.

    The texts that the model learns from name the main object first; an answer that lists every
    colour and shape until one fits is therefore wrong.
    """
    main = scene["main"]
    return first_object(answer) == (main["colour"], main["shape"])


def score_scenes(
    answers: Sequence[str],
    scenes: Sequence[Mapping[str, Any]],
    stopped: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Shares (0 to 1) of answers that are right, incomplete and repetitive.

    Args:
        answers: one text per scene, without the stop symbol.
        scenes: the truth, in the same order.
        stopped: per answer, whether it ended by its stop symbol; None: all did.

    Raises:
        ValueError: if the lengths differ or there is nothing to score.
    """
    stopped = [True] * len(answers) if stopped is None else stopped
    if not len(answers) == len(scenes) == len(stopped) or not answers:
        raise ValueError(
            f"{len(answers)} answers, {len(scenes)} scenes and {len(stopped)} stop flags; "
            "the three must be equally many, and at least one"
        )
    count = len(answers)
    triples = list(zip(answers, scenes, stopped, strict=True))
    return {
        "right": sum(main_object_right(text, scene) for text, scene, _ in triples) / count,
        "incomplete": sum(is_incomplete(text, end) for text, _, end in triples) / count,
        "repetitive": sum(is_repetitive(text) for text in answers) / count,
    }
