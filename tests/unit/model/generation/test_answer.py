"""An answer grows token by token and ends at a stop symbol, which is not part of it."""

from __future__ import annotations

import pytest

from mgpt4_hpc.model.generation.answer import GrowingAnswer


def test_a_stop_symbol_is_never_shown(vicuna) -> None:
    tokenizer = vicuna.tokenizer
    row, shown = GrowingAnswer(tokenizer, "###"), ""
    for token in tokenizer.encode("a red cat # one ## two ###Human: and more"):
        row.take(token)
        shown += row.piece()
        assert "###" not in shown
    assert row.stopped
    assert shown + row.piece(last=True) == row.answer().text == "a red cat # one ## two"


@pytest.mark.parametrize("stops", [("###", "two", "cat #!"), ("##", "two", "###")])
def test_the_first_of_several_stop_texts_ends_an_answer(vicuna, stops: tuple[str, ...]) -> None:
    row, shown = GrowingAnswer(vicuna.tokenizer, stops), ""
    for token in vicuna.tokenizer.encode("a red cat # one two ###Human: and more"):
        row.take(token)
        shown += row.piece()
    assert row.stopped
    assert shown + row.piece(last=True) == row.answer().text == "a red cat # one"


def test_half_a_stop_symbol_at_the_limit_is_text(vicuna) -> None:
    row, shown = GrowingAnswer(vicuna.tokenizer, "###"), ""
    for token in vicuna.tokenizer.encode("what ##"):
        row.take(token)
        shown += row.piece()
    assert shown == "what" and shown + row.piece(last=True) == row.answer().text == "what ##"
