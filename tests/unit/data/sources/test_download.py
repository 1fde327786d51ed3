"""The plan of a download and img2dataset's environment, without a download."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import Download, Effort, ImageSettings
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.download_cases import (
    SMALL,
    fake_environment,
    finish,
    write_list,
)


def test_shards_are_numbered_over_all_files_and_shared_by_the_parts(tmp_path: Path) -> None:
    for number, rows in enumerate((25, 10, 1, 40)):
        write_list(tmp_path / "urls" / f"{number}.parquet", rows)
    download = Download([tmp_path / "urls"], tmp_path / "out", SMALL)
    assert [file.first_shard for file in download.files] == [0, 3, 4, 5]
    assert (download.num_shards, download.num_asked) == (9, 76)
    assert [download.rows_of(range(n, n + 1)) for n in range(9)] == [10, 10, 5, 10, 1, *[10] * 4]
    assert download.rows_of(range(2, 6)) == 26
    for parts in (1, 2, 4, 9, 20):
        shared = [n for part in range(parts) for n in download.shards_of(part + 1, parts)]
        assert shared == list(range(9))


def test_what_was_begun_otherwise_is_refused(tmp_path: Path) -> None:
    first = write_list(tmp_path / "0.parquet", 25)
    second = write_list(tmp_path / "1.parquet", 5)
    out = tmp_path / "out"
    Download([first], out, SMALL)
    with pytest.raises(DataError, match="image_size was 224, is 100"):
        Download([first], out, ImageSettings(number_sample_per_shard=10, image_size=100))
    with pytest.raises(DataError, match="the input files are other ones"):
        Download([second, first], out, SMALL)
    assert Download([first, second], out, SMALL).num_shards == 4  # more behind is welcome
    with pytest.raises(DataError, match="the input files are other ones"):
        Download([first], out, SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00000.tar").touch()
    with pytest.raises(DataError, match="shards of something else"):
        Download([first], tmp_path / "other", SMALL)


def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet")
    for source, told in (
        (tmp_path / "empty", "has no \\*.parquet"),
        (tmp_path / "text.parquet", "no parquet file"),
        (tmp_path / "absent.parquet", "no parquet file"),
        (write_list(tmp_path / "text_col.parquet", 1, caption="text"), "no column caption"),
        (write_list(tmp_path / "none.parquet", 0), "has no row"),
    ):
        with pytest.raises(DataError, match=told):
            Download([source], tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_the_report_adds_up_and_names_what_is_missing(tmp_path: Path) -> None:
    download = Download([write_list(tmp_path / "0.parquet", 40)], tmp_path / "out", SMALL)
    finish(download, 0, 7, **{"HTTP Error 404": 2, "timed out": 1})
    finish(download, 2, 0, **{"timed out": 10})
    (download.out / "00003.tar").write_bytes(b"half")  # without its statistics it does not count
    report = download.report()
    assert (report.num_asked, report.num_tried, report.num_got) == (40, 20, 7)
    assert report.reasons == {"timed out": 11, "HTTP Error 404": 2}
    assert (report.missing, report.empty, report.num_bytes) == ([1, 3], [2], 2000)


@pytest.mark.slow
def test_a_shard_that_was_found_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Download([write_list(tmp_path / "0.parquet", 35)], tmp_path / "out", SMALL)
    for shard in (0, 1):
        finish(download, shard, 1)
    script = f"touch {download.out}/00003.tar; exit 0"
    python = fake_environment(tmp_path / "env", script) / "bin" / "python"
    looked: list[str] = []
    exists = Path.exists

    def noting(path: Path) -> bool:
        looked.append(path.name)
        return exists(path)

    monkeypatch.setattr(Path, "exists", noting)
    told: list[tuple[int, int]] = []
    with pytest.raises(DataError, match="2 of 4 shards could not"):
        download.run(python, Effort(1, 1), on_progress=lambda *now: told.append(now))
    assert told == [(20, 35), (25, 35)]
    assert looked.count("00000.tar") == 2 and looked.count("00002.tar") == 3
    looked.clear()
    with pytest.raises(DataError, match="2 of 4 shards could not"):
        download.run(python, Effort(1, 1))
    assert looked.count("00000.tar") == looked.count("00002.tar") == 1


def test_what_a_killed_start_left_goes_though_every_shard_is_done(tmp_path: Path) -> None:
    download = Download([write_list(tmp_path / "0.parquet", 10)], tmp_path / "out", SMALL)
    finish(download, 0, 10)
    left = download.out / ".download" / "00000-00001.abc.work"
    left.mkdir(parents=True)
    download.run(Path("/no/python"), Effort(1, 1))
    assert not left.exists() and download.report().num_got == 10
