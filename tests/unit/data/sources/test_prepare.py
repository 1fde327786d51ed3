"""From folders and patterns to an index."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgpt4_hpc.data.index import scan
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.index.shard_list import (
    expand_braces,
    expand_shards,
    expand_urls,
    left_out_of_folders,
)
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sources.pack import pack_align_folder
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.data.tar.header import WindowedFile
from mgpt4_hpc.data.tar.walk import TarListing, walk_tar
from mgpt4_hpc.errors import DataError, StorageTrouble
from mgpt4_hpc.retry import PAUSES_S, is_transient, retry_storage
from tests.unit.data.worlds import encoded, jpeg, write_shards


def align_folder(folder: Path, num: int = 7, **changes: object) -> Path:
    (folder / "image").mkdir(parents=True, exist_ok=True)
    annotations = [{"image_id": str(n), "caption": f"Résumé of {n}."} for n in range(num)]
    for entry in annotations:
        (folder / "image" / f"{entry['image_id']}.jpg").write_bytes(jpeg(int(entry["image_id"])))
    annotations += changes.get("extra", [])  # type: ignore[operator]
    text = json.dumps({"annotations": annotations})
    (folder / "filter_cap.json").write_text(text)
    return folder


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


class TestPack:
    @pytest.mark.parametrize("suffix", [".png", ".PNG", ".JPG", ".jpeg", ".webp", ".gif"])
    def test_images_of_any_name(self, tmp_path: Path, suffix: str) -> None:
        folder = align_folder(tmp_path / "align", num=3)
        form = {".png": "PNG", ".webp": "WEBP", ".gif": "GIF"}.get(suffix.lower(), "JPEG")
        for path in (folder / "image").iterdir():
            data = encoded(Image.open(path), form)
            path.unlink()
            path.with_suffix(suffix).write_bytes(data)
        packed = pack_align_folder(folder, tmp_path / "out")
        assert (packed.num_samples, packed.left_out) == (3, [])
        build_index(packed.shards, tmp_path / "out.index", ScanOptions(decode=True))
        assert ShardIndex.open(tmp_path / "out.index").num_samples == 3

    def test_files_that_do_not_fit_are_named(self, tmp_path: Path) -> None:
        extra = [{"image_id": name, "caption": "x"} for name in ("logo", "two", "5.png", "6")]
        folder = align_folder(tmp_path / "align", num=2, extra=extra)
        images = folder / "image"
        for name in ("logo.svg", "two.png", "two.gif", "5.png"):
            (images / name).write_bytes(jpeg())
        with pytest.raises(DataError) as error:
            pack_align_folder(folder, tmp_path / "out")
        for told in (
            "logo.jpg: No such file or directory; beside it lies logo.svg",
            "several images have its name: two.gif, two.png", "leave its extension out",
        ):  # fmt: skip
            assert told in str(error.value)

    def test_images_without_a_pair_are_counted(self, tmp_path: Path) -> None:
        folder = align_folder(tmp_path / "align", num=2)
        (folder / "image" / "9.jpg").write_bytes(jpeg())
        (folder / "image" / "1.gif").write_bytes(jpeg())  # 1.jpg comes before it
        (folder / "image" / "Thumbs.db").write_bytes(b"x")
        packed = pack_align_folder(folder, tmp_path / "out")
        assert {(e.extension, e.count, e.example) for e in packed.left_out} == {
            ("jpg", 1, "9.jpg"), ("gif", 1, "1.gif"), ("db", 1, "Thumbs.db"),
        }  # fmt: skip

    def test_captions_of_another_encoding(self, tmp_path: Path) -> None:
        folder = align_folder(tmp_path / "align", num=2)
        path = folder / "filter_cap.json"
        text = path.read_text().encode().decode("unicode-escape")
        path.write_text("\ufeff" + text, encoding="utf-8")
        assert pack_align_folder(folder, tmp_path / "marked").num_samples == 2
        for encoding, told in (("latin-1", "perhaps Latin-1"), ("utf-16", "UTF-16, not UTF-8")):
            path.write_text(text, encoding=encoding)
            with pytest.raises(DataError, match=told):
                pack_align_folder(folder, tmp_path / "out")

    def test_packs_everything_reproducibly(self, tmp_path: Path) -> None:
        folder = align_folder(tmp_path / "align")
        shards = pack_align_folder(folder, tmp_path / "one", samples_per_shard=3).shards
        assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
        again = pack_align_folder(folder, tmp_path / "two", samples_per_shard=3).shards
        assert [a.read_bytes() for a in shards] == [b.read_bytes() for b in again]
        with tarfile.open(fileobj=io.BytesIO(shards[0].read_bytes())) as tar:
            assert tar.getnames()[:3] == ["0.jpg", "0.json", "0.txt"]
            stored = tar.extractfile("0.json")
            assert stored is not None
            assert json.loads(stored.read())["caption"] == "Résumé of 0."

    def test_every_fault_is_named_and_nothing_written(self, tmp_path: Path) -> None:
        extra = [
            {"image_id": "3", "caption": "again"},
            {"image_id": "gone", "caption": "x"},
            {"image_id": "html", "caption": "x"},
            {"image_id": "mute", "caption": " "},
            {"image_id": "../up", "caption": "x"},
            {"caption": "no id"},
        ]
        folder = align_folder(tmp_path / "align", extra=extra)
        (folder / "image" / "html.jpg").write_bytes(b"<html>")
        (folder / "image" / "mute.jpg").write_bytes(jpeg())
        with pytest.raises(DataError) as error:
            pack_align_folder(folder, tmp_path / "out")
        text = str(error.value)
        for fault in (
            "6 of the 13", "3: the id occurs twice", "No such file", "web page",
            "mute: the caption is empty", "../up: the id is no plain", "annotation 12 has no",
        ):  # fmt: skip
            assert fault in text
        assert [path.name for path in tmp_path.iterdir()] == ["align"]

    @pytest.mark.parametrize("text", ["", "[]", '{"annotations": {}}', '{"annotations": []}'])
    def test_a_captions_file_of_another_form(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "filter_cap.json").write_text(text)
        with pytest.raises(DataError, match="annotations"):
            pack_align_folder(tmp_path, tmp_path / "out")

    def test_does_not_overwrite(self, tmp_path: Path) -> None:
        folder = align_folder(tmp_path / "align")
        with pytest.raises(DataError, match="not empty"):
            pack_align_folder(folder, folder)


class TestPrepare:
    def test_shards_are_indexed(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "data", 9, 4)
        out = prepare_source("laion", tmp_path / "data", None, tmp_path / "work")
        assert ShardIndex.open(out).num_samples == 9
        assert ShardIndex.open(out).name == "laion"
        assert prepare_source("laion", "ignored", out, tmp_path / "other") == out

    @pytest.mark.parametrize("fails", ["open", "pread", "stat"])
    def test_a_moment_without_storage_costs_no_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
    ) -> None:
        """It would change the index, by which a run is held to its data, or begin it with less."""
        shards = write_shards(tmp_path / "data", 9, 3)

        def prepared() -> str:
            work = tmp_path / "work"
            return ShardIndex.open(prepare_source("s", tmp_path / "data", None, work)).digest

        whole = prepared()
        if fails == "stat":
            module, name = Path, "stat"
        else:
            module, name = os, fails  # type: ignore[assignment]
            os.utime(shards[1])
        real, failing = getattr(module, name), [True]

        def stumbles(target: object, *arguments: object, **options: object) -> object:
            mine = fails == "pread" or str(target) == str(shards[1])
            caller = sys._getframe(1).f_code.co_name
            if mine and failing and (fails != "stat" or caller == "retry_storage"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(target, *arguments, **options)

        monkeypatch.setattr(module, name, stumbles)
        slept: list[float] = []
        usual = retry_storage.__kwdefaults__
        monkeypatch.setattr(retry_storage, "__kwdefaults__", {**usual, "sleep": slept.append})
        with pytest.raises(StorageTrouble, match=r"'s' cannot be indexed"):
            retry_storage(prepared, sleep=lambda _: pytest.fail("all of the shards are read again"))
        assert slept == list(PAUSES_S), "then the job comes back"

        def comes_back(seconds: float) -> None:
            failing.clear()

        monkeypatch.setattr(retry_storage, "__kwdefaults__", {**usual, "sleep": comes_back})
        assert prepared() == whole

    def test_after_a_stumble_no_shard_before_it_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_shards(tmp_path / "data", 12, 3)
        walked: list[int] = []

        def stumbles(file: WindowedFile, **options: bool) -> TarListing:
            walked.append(file.size)
            if len(walked) == 4:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return walk_tar(file, **options)

        monkeypatch.setattr(scan, "walk_tar", stumbles)
        waits = {**retry_storage.__kwdefaults__, "sleep": lambda seconds: None}
        monkeypatch.setattr(retry_storage, "__kwdefaults__", waits)
        retry_storage(lambda: prepare_source("s", tmp_path / "data", None, tmp_path / "work"))
        assert len(walked) == 4 + 1

    def test_whoever_watches_hears_of_each_look_at_a_shard_and_of_each_read(
        self, tmp_path: Path
    ) -> None:
        """Each may wait for storage, and together for longer than a hang may last."""
        shards = write_shards(tmp_path / "data", 9, 3)
        told: list[tuple[int, int]] = []

        def prepare() -> None:
            data, work = tmp_path / "data", tmp_path / "work"
            prepare_source("s", data, None, work, on_shard=lambda *now: told.append(now))

        prepare()
        assert told == [(1, 3), (2, 3), (3, 3)]
        os.utime(shards[1])
        prepare()
        assert told[3:] == [(0, 3)] * 3 + [(1, 3), (2, 3), (3, 3)]

    @pytest.mark.parametrize("name", ["iterdir", "read_bytes"])
    def test_a_stumble_while_listing_or_packing_may_pass(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = tmp_path / "data"
        write_shards(source, 3, 3) if name == "iterdir" else align_folder(source)
        real = getattr(Path, name)

        def stumble(path: Path) -> object:
            if path == source or path.suffix == ".jpg":
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(path)

        monkeypatch.setattr(Path, name, stumble)
        with pytest.raises(DataError) as error:
            prepare_source("s", source, None, tmp_path / "work")
        assert is_transient(error.value)

    def test_a_shard_without_permission_is_quarantined(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shards = write_shards(tmp_path / "data", 9, 3)
        real = os.open

        def refused(path: object, *arguments: object, **options: object) -> int:
            if str(path) == str(shards[1]):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refused)
        out = prepare_source("s", tmp_path / "data", None, tmp_path / "work")
        assert ShardIndex.open(out).num_samples == 6

    def test_an_align_folder_is_packed_once_and_again_when_it_changed(self, tmp_path: Path) -> None:
        folder = align_folder(tmp_path / "align")
        out = prepare_source("align", folder, None, tmp_path / "work")
        shard = ShardIndex.open(out).shard_path(0)
        before = shard.stat().st_ino
        assert prepare_source("align", folder, None, tmp_path / "work") == out
        assert shard.stat().st_ino == before
        align_folder(tmp_path / "align", 9)
        prepare_source("align", folder, None, tmp_path / "work")
        index = ShardIndex.open(out)
        assert index.num_samples == 9
        assert SampleReader([index]).read(0, 8).caption == "Résumé of 8."
        made = sorted(path.name for path in (tmp_path / "work").iterdir())
        assert made == ["align-shards", "align.index"]

    def test_a_source_without_samples_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"<html>" * 300)
        with pytest.raises(DataError, match="no usable sample"):
            prepare_source("web", tmp_path / "a.tar", None, tmp_path / "work")

    def test_an_align_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "filter_cap.json").write_text("{}")
        with pytest.raises(DataError, match="image"):
            prepare_source("align", tmp_path, None, tmp_path / "work")
