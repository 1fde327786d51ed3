"""Packing pairs of images and captions into shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.data.sources.pack import pack_align_folder, pack_pairs
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.align_folder import align_folder
from tests.unit.data.worlds import encoded, jpeg


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


class TestPairs:
    def test_a_folder_of_images_and_texts(self, tmp_path: Path) -> None:
        src = tmp_path / "pairs"
        src.mkdir()
        for stem in ("a", "b.1", "c", "alone"):
            (src / f"{stem}.jpg").write_bytes(jpeg())
        (src / "a.txt").write_text("A résumé.")
        (src / "b.1.TXT").write_text("Two.")
        (src / "c.json").write_text('{"caption": "Three."}')
        (src / "README.txt").write_text("of no image")
        (src / "alone.txt").mkdir()
        for name in ("._a.jpg", "._a.txt"):
            (src / name).write_bytes(b"macOS")
        with pytest.raises(DataError, match=r"pack them first \(mgpt4 data pack .*pairs --out"):
            expand_shards(src)
        packed = pack_pairs(src, tmp_path / "out", samples_per_shard=2)
        assert [shard.name for shard in packed.shards] == ["00000.tar", "00001.tar"]
        assert {(e.count, e.example) for e in packed.left_out} == {
            (2, "._a.jpg"), (3, "._a.txt"),
        }  # fmt: skip
        index, _ = build_index(packed.shards, tmp_path / "i.index", ScanOptions(decode=True))
        assert (index.num_samples, index.quarantined) == (3, [])
        again = pack_pairs(src, tmp_path / "two", samples_per_shard=2).shards
        assert [a.read_bytes() for a in packed.shards] == [b.read_bytes() for b in again]

    def test_names_all_that_is_bad(self, tmp_path: Path) -> None:
        for stem, text in (("a.b", "x"), ("a_b", "x"), ("mute", " "), ("web", "x"), ("good", "x")):
            (tmp_path / f"{stem}.jpg").write_bytes(b"<html>" if stem == "web" else jpeg())
            (tmp_path / f"{stem}.txt").write_text(text)
        (tmp_path / "lost.jpg").write_bytes(jpeg())
        (tmp_path / "lost.txt").symlink_to("nowhere")
        with pytest.raises(DataError) as error:
            pack_pairs(tmp_path, tmp_path / "out")
        faults = ("4 of the 6", "a_b occurs twice", "lost.txt: No such", "its caption is empty")
        for fault in (*faults, "web page"):
            assert fault in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_a_folder_without_any(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"KEY.txt .*filter_cap.json"):
            pack_pairs(tmp_path, tmp_path / "out")
