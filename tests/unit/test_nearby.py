"""What lies beside a file that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.nearby import beside


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Cat.png", "; beside it lies cat.jpg"),
        ("dgo.jpg", "; beside it lies dog.jpg"),
        ("0001.tar", "; beside it lie 0001.jpg, 0001.json, 0001.txt ..."),
        ("bird.jpg", ""),
        ("no/such/cat.jpg", "; {}/no does not exist"),
        ("Dgos/x.jpg", "; {}/Dgos does not exist; beside it lies Dogs"),
    ],
)
def test_similar_names_are_listed(wanted: str, message: str, tmp_path: Path) -> None:
    for name in ("cat.jpg", "dog.jpg", *(f"0001.{end}" for end in ("jpg", "json", "txt", "wds"))):
        (tmp_path / name).touch()
    (tmp_path / "Dogs").mkdir()
    assert beside(tmp_path / wanted) == message.format(tmp_path)
