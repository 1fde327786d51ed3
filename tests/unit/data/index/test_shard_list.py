"""Tests of ``data/index/shard_list.py``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt4_hpc.data.index.shard_list import (
    expand_braces,
    expand_shards,
    expand_urls,
    left_out_of_folders,
)
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.align_folder import align_folder
from tests.unit.data.worlds import write_shards


def test_a_file_of_conversations_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    with pytest.raises(DataError, match=r"talk\.json is no shard.*") as caught:
        expand_shards(tmp_path / "talk.json")
    assert "mgpt4 data pack" in str(caught.value)


class TestShards:
    def test_a_folder_in_order_of_names(self, tmp_path: Path) -> None:
        paths = write_shards(tmp_path, 5, 1)
        (tmp_path / "00000_stats.json").write_text("{}")
        assert expand_shards(tmp_path) == paths
        assert expand_shards(str(paths[2])) == [paths[2]]

    def test_patterns_and_lists(self, tmp_path: Path) -> None:
        paths = write_shards(tmp_path, 12, 1)
        assert expand_shards(f"{tmp_path}/{{00003..00007}}.tar") == paths[3:8]
        listing = tmp_path / "some.txt"
        listing.write_text("# mine\n00001.tar\n\n{00004..00005}.tar  # two\n")
        assert expand_shards(listing) == [paths[1], paths[4], paths[5]]

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("{08..11}", ["08", "09", "10", "11"]),
            ("{9..11}", ["9", "10", "11"]),
            ("{3..1}", ["3", "2", "1"]),
            ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
            ("x{y}z", ["x{y}z"]),
            ("plain", ["plain"]),
        ],
    )
    def test_braces(self, pattern: str, expected: list[str]) -> None:
        assert list(expand_braces(pattern)) == expected

    @given(st.text(alphabet="{},.0a19", max_size=12))
    def test_any_pattern_ends(self, pattern: str) -> None:
        first = list(islice(expand_braces(pattern), 1000))
        assert first  # at least the pattern itself, and never an endless search
        if not set(pattern) >= {"{", "}"}:
            assert first == [pattern]

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        write_shards(tmp_path, 3, 1)
        with pytest.raises(DataError, match=r"2 of the 5 shards .*/00003\.tar, .*/00004\.tar"):
            expand_shards(f"{tmp_path}/{{00000..00004}}.tar")
        (tmp_path / "twice.txt").write_text("00000.tar\n00000.tar\n")
        with pytest.raises(DataError, match="named twice"):
            expand_shards(tmp_path / "twice.txt")
        (tmp_path / "none.txt").write_text("# nothing\n")
        with pytest.raises(DataError, match="names no shard"):
            expand_shards(tmp_path / "none.txt")
        with pytest.raises(DataError, match="cannot be read"):
            expand_shards(tmp_path / "absent.txt")
        with pytest.raises(DataError, match="URL"):
            expand_shards("https://example.com/{0..9}.tar")
        (tmp_path / "a.tar.gz").write_bytes(b"x")
        with pytest.raises(DataError, match="compressed"):
            expand_shards(tmp_path / "a.tar.gz")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"no \*\.tar"):
            expand_shards(tmp_path / "empty")
        with pytest.raises(DataError, match="pack it first"):
            expand_shards(align_folder(tmp_path / "align"))


class TestJoinedAndOddNames:
    def test_folders_and_patterns_joined(self, tmp_path: Path) -> None:
        a, b = write_shards(tmp_path / "a", 2, 1), write_shards(tmp_path / "b", 3, 1)
        assert expand_shards(f"{tmp_path}/a::{tmp_path}/b/{{00000..00001}}.tar") == a + b[:2]
        (tmp_path / "list.txt").write_text(f"a/{{00000..00001}}.tar::{tmp_path}/b/00002.tar\n")
        assert expand_shards(tmp_path / "list.txt") == [*a, b[2]]
        with pytest.raises(DataError, match="named twice"):
            expand_shards(f"{tmp_path}/a::{tmp_path}/a")
        odd = write_shards(tmp_path / "x::y", 1, 1)
        assert expand_shards(str(odd[0])) == odd
        urls = expand_urls("https://h/{0..1}.tar::pipe:cat {2..3}.tar")
        assert urls == ["https://h/0.tar", "https://h/1.tar", "pipe:cat 2.tar", "pipe:cat 3.tar"]
        assert expand_urls("http://[::1]:80/0.tar") == ["http://[::1]:80/0.tar"]

    @pytest.mark.parametrize(
        ("spec", "told"),
        [
            ("https://h/0.tar::/data/0.tar", "is no URL, others are"),
            ("https://h/*.tar", "is no pattern: a server does not list"),
            ("https://h/{0..9999999}.tar", "more than 1,000,000 names"),
        ],
    )
    def test_urls_that_cannot_be(self, spec: str, told: str) -> None:
        with pytest.raises(DataError, match=told.replace("*", r"\*")):
            expand_urls(spec)

    @pytest.mark.parametrize(
        "pattern",
        [
            "{00000..99999}/{00000..99999}.tar",
            "{0..99999999999999}.tar",
            "{0.." + "9" * 5000 + "}",
            "{a,b}" * 64,
            "{a," * 30 + "{0..999999999}",
        ],
    )
    def test_patterns_beyond_sense_are_refused_at_once(self, pattern: str) -> None:
        with pytest.raises(DataError, match="more than 1,000,000"):
            next(expand_braces(pattern))

    def test_many_braces_that_are_none(self) -> None:
        assert list(expand_braces("{x}" * 5000)) == ["{x}" * 5000]

    def test_patterns_of_the_shell(self, tmp_path: Path) -> None:
        a, b = write_shards(tmp_path / "a", 12, 1), write_shards(tmp_path / "b", 2, 1)
        assert expand_shards(f"{tmp_path}/a/0000[1-3].tar") == a[1:4]
        assert expand_shards(f"{tmp_path}/*/0000?.tar") == a[:10] + b
        assert expand_shards(f"{tmp_path}/{{b,a}}/*0.tar") == [b[0], a[0], a[10]]
        (tmp_path / "list.txt").write_text("b/*.tar\n")
        assert expand_shards(tmp_path / "list.txt") == b
        with pytest.raises(DataError, match=r"nothing matches .*c/\*"):
            expand_shards(f"{tmp_path}/c/*.tar")
        literal = write_shards(tmp_path / "d[1]", 1, 1)
        assert expand_shards(str(literal[0])) == literal
        with pytest.raises(DataError, match=r"\{0\.\.9\.\.3\} is no pattern here"):
            expand_shards(f"{tmp_path}/a/{{0..9..3}}.tar")

    def test_lists_as_editors_write_them(self, tmp_path: Path) -> None:
        shard = write_shards(tmp_path / "a#1", 1, 1)[0]
        spaced = write_shards(tmp_path / "b #2", 1, 1)[0]
        text = "# mine\r\na#1/00000.tar # the first\r\nb #2/00000.tar\r\n"
        listing = tmp_path / "list.txt"
        listing.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert expand_shards(listing) == [shard, spaced]
        listing.write_text(text, encoding="utf-16")
        with pytest.raises(DataError, match="its text is UTF-16, not UTF-8"):
            expand_shards(listing)
        listing.write_bytes(b"caf\xe9.tar\n")
        with pytest.raises(DataError, match=r"not UTF-8, perhaps Latin-1 .*byte 3"):
            expand_shards(listing)
        listing.write_text("https://h/0.tar\n")
        with pytest.raises(DataError, match="is a URL"):
            expand_shards(listing)

    def test_near_names_are_told(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "laion", 2, 1)
        (tmp_path / "laion" / "00001.tar").rename(tmp_path / "laion" / "00001.TAR")
        with pytest.raises(DataError, match=r"beside it lies 00001\.TAR"):
            expand_shards(f"{tmp_path}/laion/{{00000..00001}}.tar")
        with pytest.raises(DataError, match=r"laoin does not exist; beside it lies laion"):
            expand_shards(f"{tmp_path}/laoin/00000.tar")

    @pytest.mark.parametrize(
        ("ending", "command"),
        [("tar.gz", "gunzip"), ("tgz", "gunzip"), ("tar.xz", "unxz"), ("tar.zst", "unzstd --rm")],
    )
    def test_compressed_shards_are_named_with_what_unpacks_them(
        self, tmp_path: Path, ending: str, command: str
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.{ending}").write_bytes(b"x")
        for spec in (tmp_path, f"{tmp_path}/*.{ending}", tmp_path / f"a.{ending}"):
            with pytest.raises(DataError, match=rf"a\.{ending} is compressed") as refused:
                expand_shards(spec)
            assert f"{command} {tmp_path}/*.{ending}" in str(refused.value)

    def test_what_else_lies_in_a_folder(self, tmp_path: Path) -> None:
        write_shards(tmp_path, 1, 1)
        for name in ("a.tar.gz", "b.tgz", "00000.parquet", "c.TAR"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "more").mkdir()
        assert {(e.extension, e.reason) for e in left_out_of_folders(tmp_path)} == {
            ("gz", "it is compressed, and not read"),
            ("tgz", "it is compressed, and not read"),
            ("parquet", "it is no .tar"),
            ("tar", "it is no .tar"),
            ("", "folders in a folder of shards are not searched"),
        }
