"""Incomplete and repetitive answers are told from sound ones."""

from __future__ import annotations

import pytest

from mgpt4_hpc.evaluation.failures import (
    echoes_prompt,
    is_empty,
    is_incomplete,
    is_repetitive,
)

SOUND = (
    "The image shows a large red circle at the top left. There is also a small red circle at the "
    "top right. Finally, a medium red square is at the top centre. The background is white."
)


@pytest.mark.parametrize(
    ("text", "stopped", "incomplete"),
    [
        (SOUND, True, False),
        (SOUND, False, True),
        ("The image shows a large red", True, True),
        ("", True, True),
        ("   ", True, True),
        ('He said "stop."', True, False),
        ("Is it a ring?\n", True, False),
        ("a red circle at the top\na red circle at the top\n", False, True),
    ],
)
def test_incomplete(text: str, stopped: bool, incomplete: bool) -> None:
    assert is_incomplete(text, stopped) is incomplete


@pytest.mark.parametrize(
    ("text", "repetitive"),
    [
        (SOUND, False),
        ("", False),
        ("a very, very large circle.", False),
        ("a very very very large circle.", True),
        ("red circle red circle red circle", True),
        ("a red circle at the top\na red circle at the top", True),
        ("A red circle at the top. Nothing else. A red circle at the TOP!", True),
        ("Yes. It is. A ring. Yes. It is.", False),
        ("of the sea and of the sea and of the sea and of", True),
        ("a red ring on white next to a red ring on black", False),
    ],
)
def test_repetitive(text: str, repetitive: bool) -> None:
    assert is_repetitive(text) is repetitive


def test_a_loop_of_more_than_one_sentence_is_seen() -> None:
    assert is_repetitive("One two three. Four five six. One two three. Four five six.")


@pytest.mark.parametrize(
    ("text", "empty"), [("", True), (" \n", True), ("...", True), ("ok", False)]
)
def test_empty(text: str, empty: bool) -> None:
    assert is_empty(text) is empty


ASKED = "Describe the image in detail."


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("Describe the image in detail.", True),
        ("describe the image in DETAIL: a cat", True),
        ("the image in detail", True),
        ("The image shows a cat in detail.", False),
        ("The image", False),
        ("", False),
    ],
)
def test_echo(text: str, echo: bool) -> None:
    assert echoes_prompt(text, ASKED) is echo
