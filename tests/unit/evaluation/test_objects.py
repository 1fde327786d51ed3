"""Objects are found by their longest name, and counted as CHAIR counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import DataError
from mgpt4_hpc.evaluation.objects import Objects, named_objects, score_objects

COCO = named_objects("coco")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two dogs and a puppy lie on the benches.", ["dog", "dog", "bench"]),
        ("a hot dog beside a dog", ["hot dog", "dog"]),
        ("a teddy bear; a bear", ["teddy bear", "bear"]),
        ("buses, glass, and grass", ["bus"]),
        ("The women carry knives.", ["person", "knife"]),
        ("a stop sign and a traffic light", ["stop sign", "traffic light"]),
        ("", []),
    ],
)
def test_mentions(text: str, found: list[str]) -> None:
    assert COCO.mentioned(text) == found


def test_coco_has_eighty_objects() -> None:
    names = set(COCO._names.values())
    assert len(names) == 80


def test_coverage_and_hallucination() -> None:
    scores = score_objects(
        COCO, "A cat and a horse. The cat sleeps.", ["A kitten on a couch", "a dog, a sofa"]
    )
    assert scores == {"mentions": 3, "made_up": 1, "chair_s": 1, "coverage": pytest.approx(1 / 3)}
    assert "coverage" not in score_objects(COCO, "a cat", ["nothing here"])


def test_toy_objects_have_a_colour() -> None:
    assert named_objects("toy").mentioned("A large red circle, and red squares.") == [
        "red circle",
        "red square",
    ]


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# mine\n\nlesion, shadow, dark spot\nrib\n")
    assert Objects.read(path).mentioned("Dark spots under two ribs") == ["lesion", "rib"]
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="names no object"):
        Objects.read(path)
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        Objects.read(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        Objects.read(path)
