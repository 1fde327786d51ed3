"""Members to samples: what is whole is indexed, the rest quarantined with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.data.index.scan import ShardScan, scan_shard
from tests.unit.data.scanning import scan
from tests.unit.data.worlds import encoded, jpeg, members

JSON = b'{"caption": "a cat"}'


def quarantined(result: ShardScan) -> dict[str, str]:
    return {entry.key: entry.reason for entry in result.quarantined}


def test_members_in_any_order_make_samples(tmp_path: Path) -> None:
    usual = members(range(3))
    shuffled = [usual[i] for i in (8, 0, 4, 2, 7, 1, 6, 3, 5)]
    result = scan(tmp_path, shuffled)
    assert sorted(result.keys) == [b"000000000", b"000000001", b"000000002"]
    assert not result.quarantined
    data = (tmp_path / "s.tar").read_bytes()
    for row, key in enumerate(result.keys):
        spans = zip(result.blocks[row].tolist(), result.lengths[row].tolist(), strict=True)
        parts = [data[block * 512 : block * 512 + length] for block, length in spans]
        expected = dict(usual)
        assert parts == [expected[f"{key.decode()}.{part}"] for part in ("jpg", "json", "txt")]


def test_the_usual_layout_and_the_general_way_agree(tmp_path: Path) -> None:
    usual = scan(tmp_path, members(range(20)), verify=True)
    odd = scan(tmp_path, [*members(range(20)), ("readme", b"x")], verify=True)
    assert odd.num_ignored == 1
    assert usual.keys == odd.keys
    assert usual.crcs is not None
    assert odd.crcs is not None
    for name in ("blocks", "lengths", "crcs"):
        assert (getattr(usual, name) == getattr(odd, name)).all()


def test_each_kind_of_incomplete_sample_is_named(tmp_path: Path) -> None:
    result = scan(
        tmp_path,
        [
            ("good.jpg", jpeg()),
            ("good.txt", b"only a txt"),
            ("nojpg.json", JSON),
            ("nojpg.txt", b"x"),
            ("alone.jpg", jpeg()),
            ("empty.jpg", b""),
            ("empty.json", JSON),
            ("twice.jpg", jpeg()),
            ("twice.jpg", jpeg(1)),
            ("twice.json", JSON),
            ("both.png", jpeg()),
            ("both.jpg", jpeg()),
            ("both.json", JSON),
            ("deep/er/UPPER.JPG", jpeg()),
            ("deep/er/UPPER.Json", JSON),
            ("./dot.webp", jpeg()),
            ("./dot.json", JSON),
            ("other.cls", b"7"),
            (".hidden.jpg", jpeg()),
        ],
    )
    assert result.keys == [b"good", b"deep/er/UPPER", b"dot"]
    assert quarantined(result) == {
        "nojpg": "it has no image",
        "alone": "it has neither json nor txt",
        "empty": "its jpg is empty",
        "twice": "it has two jpg members",
        "both": "it has two jpg members",
    }
    assert result.num_ignored == 2


def test_an_index_stays_small_whatever_names_end_in(tmp_path: Path) -> None:
    result = scan(tmp_path, [(f"x.{n:x}", b"x") for n in range(500)])
    assert len(result.left_out) <= 65
    assert result.num_ignored == 500


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../etc/passwd.jpg", "points outside"),
        ("/abs/olute.jpg", "points outside"),
        ("a\\b.jpg", "points outside"),
        ("a/../b.jpg", "points outside"),
        ("bell\a.jpg", "control"),
        ("two\nlines.jpg", "control"),
        ("a\u202eb.jpg", "control"),
    ],
)
def test_tricks_in_names_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    entries = [(name, jpeg()), (name[:-3] + "json", JSON), (name[:-3] + "txt", b"a cat")]
    result = scan(tmp_path, entries)
    assert not result.keys
    assert [reason in entry.reason for entry in result.quarantined] == [True]
    assert all(entry.key.isprintable() for entry in result.quarantined)


def test_decode_drops_what_cannot_be_used(tmp_path: Path) -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "JPEG")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    entries = [
        ("cmyk.jpg", cmyk),
        ("png.jpg", encoded(Image.new("RGBA", (8, 8)), "PNG")),
        ("deep.jpg", encoded(Image.new("I;16", (8, 8), 40_000), "PNG")),
        ("film.jpg", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        ("page.jpg", b"\n<!DOCTYPE html><html>404</html>"),
        ("half.jpg", jpeg(size=(64, 64))[:-200]),
        ("noise.jpg", b"\xff\xd8\xff\xe0" + bytes(range(200))),
        ("nocap.jpg", jpeg()),
        ("list.jpg", jpeg()),
        ("blank.jpg", jpeg()),
        ("broken.jpg", jpeg()),
    ]
    texts = {
        "nocap": b'{"url": "x"}',
        "list": b'{"caption": ["x"]}',
        "blank": b'{"caption": " \\n"}',
        "broken": b'{"caption": "x',
    }
    for name, _ in list(entries):
        key = name.split(".")[0]
        entries.append((f"{key}.json", texts.get(key, JSON)))
    assert len(scan(tmp_path, entries).keys) == len(texts) + 7
    result = scan(tmp_path, entries, decode=True)
    assert result.keys == [b"cmyk", b"png", b"deep", b"film"]
    reasons = quarantined(result)
    assert "web page" in reasons["page"]
    assert "decoded" in reasons["half"]
    assert "decoded" in reasons["noise"]
    assert reasons["nocap"] == "its json has no caption"
    assert reasons["list"] == "its caption is list, not text"
    assert reasons["blank"] == "its caption is empty"
    assert reasons["broken"] == "its json cannot be parsed"


def test_an_unreadable_shard_is_one_entry(tmp_path: Path) -> None:
    assert "No such file" in scan_shard(tmp_path / "gone.tar", "gone.tar").quarantined[0].reason
    (tmp_path / "folder.tar").mkdir()
    assert "directory" in scan_shard(tmp_path / "folder.tar", "folder.tar").quarantined[0].reason
