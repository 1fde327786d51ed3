"""``docs/data.md`` against the commands, and against what the index says of damage."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from mgpt4_hpc.cli.data.group import data_command
from mgpt4_hpc.data.index.index import ScanOptions, build_index
from tests.support.shown import assert_understood, shown_commands
from tests.unit.data.worlds import members, tar_bytes

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("words", list(shown_commands(TEXT)), ids=" ".join)
def test_every_command_shown_is_one(words: list[str]) -> None:
    assert_understood(words)


def test_every_command_is_shown() -> None:
    shown = {words[1] for words in shown_commands(TEXT) if words[0] == "data"}
    assert shown == set(data_command.commands)


def damaged() -> dict[str, bytes]:
    good = tar_bytes(members(range(6)))
    return {
        "cut": good[: len(good) // 2 + 100],
        "no-end": good[:-10240] if good[-10240:].strip(b"\0") == b"" else good,
        "hole": good[:4096] + b"\xff" * 2048 + good[6144:],
        "tail": good + b"x" * 1024,
        "zeros": good + bytes(1024 * 1024),
        "twice": tar_bytes([*members([1]), *members([1])]),
        "half": tar_bytes([("a.jpg", b"x"), ("b.txt", b"x"), ("c.jpg", b""), ("../d.jpg", b"x")]),
        "page": tar_bytes(members([1], b"<html>")),
        "noise": tar_bytes(members([1], b"noise")),
        "captions": tar_bytes(
            [("a.jpg", b"<html>"), ("a.json", b"{"), ("b.jpg", b""), ("b.txt", b"")]
        ),
        "link": tar_bytes(members([1])).replace(b"0ustar", b"2ustar"),
    }


def test_every_reason_that_damage_gives_is_explained(tmp_path: Path) -> None:
    for name, data in damaged().items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    link = tarfile.TarInfo("k.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "other.jpg"
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        tar.addfile(link)
    index, _ = build_index(
        sorted(tmp_path.glob("*.tar")), tmp_path / "x.index", ScanOptions(decode=True)
    )
    explained = [
        re.escape(entry).replace(r"\.\.\.", ".*").replace("jpg", "(jpg|json|txt)")
        for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
        for entry in re.findall(r"`([^`]+)`", row)
    ]
    patterns = [re.sub(r"\b(NAME|N|A|B|W|H|WxH)\b", r"\\S+", entry) for entry in explained]
    reasons = {reason for _, _, reason in index.quarantined}
    assert len(reasons) >= 10
    unexplained = [
        reason for reason in reasons if not any(re.search(found, reason) for found in patterns)
    ]
    assert unexplained == []
