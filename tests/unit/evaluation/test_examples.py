"""Images and references from folders, shards, aligned folders and COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import build_index
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.evaluation.examples import load_examples, read_references, spread
from tests.support.tiny_world import TinyWorld


def test_folders_and_shards(tiny_world: TinyWorld) -> None:
    align = load_examples(tiny_world.align)
    assert align[0].references and align[0].data()[:2] == b"\xff\xd8"
    plain = load_examples(tiny_world.align / "image", limit=5)
    assert len(plain) == 5 and not plain[0].references
    shards = load_examples(tiny_world.shards("laion"), limit=7)
    assert len(shards) == 7 and shards[0].references and shards[0].data()[:2] == b"\xff\xd8"
    assert len({example.name for example in shards}) == 7


def test_an_index_and_the_toy_worlds_images(tiny_world: TinyWorld, tmp_path: Path) -> None:
    shards = tiny_world.shards("laion")
    path = tmp_path / "laion.index"
    build_index(sorted(shards.glob("*.tar")), path)
    assert load_examples(path, limit=7) == load_examples(shards, limit=7)
    assert load_examples("toy:heldout", limit=3)[0].references


def test_references_in_cocos_layout_and_as_a_mapping(tiny_world: TinyWorld, tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 8, "file_name": "other.jpg"}],
        "annotations": [{"image_id": 7, "caption": " A cat. "}, {"image_id": 7, "caption": "Cat"}],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(coco))
    examples = load_examples(tiny_world.align / "image", path)
    assert {e.name: e.references for e in examples}["0.jpg"] == ("A cat.", "Cat")
    path.write_text(json.dumps({"0.jpg": "A cat.", "1.jpg": ["A dog."]}))
    assert read_references(path) == {"0.jpg": ("A cat.",), "1.jpg": ("A dog.",)}
    path.write_text(json.dumps({"nobody.jpg": "A cat."}))
    with pytest.raises(DataError, match="says nothing about any of"):
        load_examples(tiny_world.align / "image", path)
    for text, told in (
        ("", "it is no JSON"),
        ("[1]", "it is no object of names and captions"),
        ('{"annotations": 3}', "an entry is missing, 'images'"),
        ('{"a": 4}', "its entries are of another kind"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"holds no captions: {told}"):
            read_references(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="holds no captions: it is UTF-16, not UTF-8"):
        read_references(path)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load_examples(tmp_path)
    with pytest.raises(DataError):
        load_examples(tmp_path / "nowhere")


def test_a_part_is_spread_evenly() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 5) == [0, 1, 2]
