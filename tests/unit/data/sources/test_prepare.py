"""From folders and patterns to an index."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index import scan
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.data.tar.header import WindowedFile
from mgpt4_hpc.data.tar.walk import TarListing, walk_tar
from mgpt4_hpc.errors import DataError, StorageTrouble
from mgpt4_hpc.retry import PAUSES_S, is_transient, retry_storage
from tests.unit.data.sources.align_folder import align_folder
from tests.unit.data.worlds import write_shards


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
