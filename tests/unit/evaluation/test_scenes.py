"""Answers are scored against the truth about a scene."""

from __future__ import annotations

import pytest

from mgpt4_hpc.evaluation.scenes import (
    COLOURS,
    SHAPES,
    first_object,
    main_object_right,
    score_scenes,
)

SCENE = {"main": {"colour": "red", "shape": "ring"}}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The image shows a large red ring at the top left.", True),
        ("RED RING, top left", True),
        ("a red, ring", True),
        ("The image shows a large red circle. There is also a small red ring.", False),
        ("a blue ring", False),
        ("a ring that is red", False),
        ("a red background and a ring", False),
        ("", False),
    ],
)
def test_only_the_first_object_counts(answer: str, right: bool) -> None:
    assert main_object_right(answer, SCENE) is right


def test_listing_everything_is_not_right() -> None:
    everything = ", ".join(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    assert first_object(everything) == ("red", "circle")
    assert not main_object_right(everything, SCENE)


def test_shares() -> None:
    answers = ["A red ring.", "A red ring", "A blue ring. A blue ring.", "A red ring."]
    shares = score_scenes(answers, [SCENE] * 4, [True, True, True, False])
    assert shares == {"right": 0.75, "incomplete": 0.5, "repetitive": 0.25}


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="equally many"):
        score_scenes(["A red ring."], [SCENE, SCENE])
    with pytest.raises(ValueError, match="at least one"):
        score_scenes([], [])
