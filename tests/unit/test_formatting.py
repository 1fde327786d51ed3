"""Times, sizes and counts, as tables and messages show them."""

import time
from pathlib import Path

import pytest

from mgpt4_hpc.formatting import beside, clock_time, counted, size_text
from mgpt4_hpc.run_dir import read_json, write_json
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run


def test_a_size_has_a_unit_that_suits_and_a_count_its_singular() -> None:
    sizes = [0, 491, 4_580, 491_783, 12 * 2**30, 2**50]
    assert [size_text(size) for size in sizes] == [
        *("0 B", "491 B", "4.5 KiB", "480 KiB", "12 GiB", "1024 TiB")
    ]
    assert [counted(n, "checkpoint") for n in (0, 1, 2)] == [
        *("0 checkpoints", "1 checkpoint", "2 checkpoints")
    ]


def test_a_time_of_another_day_has_its_date() -> None:
    now = time.mktime((2026, 11, 26, 15, 0, 0, 0, 0, -1))
    assert clock_time(now - 1800, now) == "14:30"
    assert clock_time(now - 86400, now) == "2026-11-25 15:00"


def test_ls_tells_local_times_as_history_does(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for name, created in (("a", "2026-11-22T18:47:19+0000"), ("b", "once")):
        run = make_run(tmp_path / "runs", name)
        write_json(run.identity_file, {**read_json(run.identity_file), "created": created})
        told[name] = created
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-2")
        time.tzset()
        out = mgpt4("ls").out
    time.tzset()
    assert "2026-11-22 20:47:19" in out and "once" in out
    assert {row["name"]: row["created"] for row in mgpt4("ls", "--json").json} == told


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Cat.png", "; beside it lies cat.jpg"),
        ("dgo.jpg", "; beside it lies dog.jpg"),
        ("0001.tar", "; beside it lie 0001.jpg, 0001.json, 0001.txt ..."),
        ("bird.jpg", ""),
        ("no/such/cat.jpg", "; {}/no does not exist"),
        ("Dgos/x.jpg", "; {}/Dgos does not exist; beside it lies Dogs"),
    ],
)
def test_similar_names_are_listed(wanted: str, message: str, tmp_path: Path) -> None:
    for name in ("cat.jpg", "dog.jpg", *(f"0001.{end}" for end in ("jpg", "json", "txt", "wds"))):
        (tmp_path / name).touch()
    (tmp_path / "Dogs").mkdir()
    assert beside(tmp_path / wanted) == message.format(tmp_path)
