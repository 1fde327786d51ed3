"""The terminal's lines: file names as they are pasted, and answers that are cut off."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgpt4_hpc.chat.terminal import _answer
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4


@pytest.mark.slow
def test_file_names_as_terminals_paste_them(
    mgpt4: Mgpt4, run: RunDir, image: Path, tmp_path: Path, typed
) -> None:
    for name in ("a b.jpg", "it's.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(image.read_bytes())
    photo = tmp_path / "c.jpg"
    typed(
        f"/image '{tmp_path}/a b.jpg' {photo}", f"/image {tmp_path}/a\\ b.jpg",
        f"/image {tmp_path}/a b.jpg", f"/image {tmp_path}/it's.jpg", "/image 'a.jpg",
        f"/save {photo}", "/save one two",
    )  # fmt: skip
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1, ended.err
    assert ended.err.count("a b.jpg\n") == 3 and "image 5: " in ended.err
    assert "close the quote" in ended.err and "takes one file" in ended.err
    assert "c.jpg exists and is not a conversation" in ended.err
    assert photo.read_bytes() == image.read_bytes()


@pytest.mark.parametrize(("full", "told"), [(True, "/reset"), (False, "--max-new-tokens")])
def test_an_answer_that_is_cut_off_names_the_limit(
    capsys: pytest.CaptureFixture[str], full: bool, told: str
) -> None:
    def ask(question: str) -> Generator[str, None, Answer]:
        yield "a red"
        return Answer("a red", False, (1, 2))

    said = SimpleNamespace(images=["a"], turns=[])
    _answer(SimpleNamespace(ask=ask, context_is_limit=full, conversation=said), "What?")  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.out == "a red\n"
    assert printed.err.startswith("(cut off") and told in printed.err
