"""Tests of ``cli/data/stats.py``."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def shards(world: TinyWorld, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.shards("laion"), tmp_path / "laion"))


def test_stats(mgpt4: Mgpt4, world: TinyWorld, shards: Path) -> None:
    mgpt4("data", "index", shards, "--out", "laion.index")
    ended = mgpt4("data", "stats", "laion.index", "--contact-sheet", "sheet.png")
    assert "16 of 16 samples read" in ended.out
    assert "most frequent sizes: 56x56 (16)" in ended.out
    assert "--tokenizer LLM_DIR" in ended.err
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    told = mgpt4(
        "data", "stats", shards, "--tokenizer", world.weights / "llm", "--limit", "4", "--json"
    ).json
    assert (told["num_samples"], told["num_read"]) == (16, 4)
    assert told["tokens"]["stage1"]["minimum"] >= 2
    assert set(told["truncated"]) == {"stage1", "stage2"}
    assert sorted(path.name for path in Path().iterdir()) == ["laion", "laion.index", "sheet.png"]


@pytest.mark.slow
def test_stats_of_shards_that_are_gone(mgpt4: Mgpt4, shards: Path) -> None:
    mgpt4("data", "index", shards, "--out", "laion.index")
    shutil.rmtree(shards)
    ended = mgpt4("data", "stats", "laion.index")
    assert ended.code == 1
    assert "no sample can be read" in ended.err
    assert "No such file" in ended.out


def test_a_contact_sheet_is_drawn_over_an_earlier_one_only(mgpt4: Mgpt4, shards: Path) -> None:
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("list.png").write_text("no picture")
    Path("list.json").write_text("[]")
    for name, told in (
        ("photo.png", "is not a contact sheet that mgpt4 wrote"),
        ("list.png", "is not a contact sheet that mgpt4 wrote"),
        ("list.json", "end its name in .png"),
    ):
        before = Path(name).read_bytes()
        ended = mgpt4("data", "stats", shards, "--contact-sheet", name)
        assert ended.code == 2 and told in ended.err
        assert Path(name).read_bytes() == before
    for _ in range(2):
        assert mgpt4("data", "stats", shards, "--contact-sheet", "sheet.png").code == 0
