from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import write_json
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import Clock, attempt, make_run


def test_several_runs_and_their_total(mgpt4: Mgpt4, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    clock = Clock()
    one = make_run(runs, "one")
    attempt(one, 1, first=1, last=30, cause="preempted", clock=clock)
    clock.now += 50
    attempt(one, 2, first=26, last=100, restart_count=1, cause="finished", clock=clock)
    attempt(make_run(runs, "two"), 1, first=1, last=60, cause="finished")
    make_run(runs, "three")

    told = mgpt4("usage", "one", "two", "--json").json
    first, second = told["runs"]
    assert (first["name"], second["name"]) == ("one", "two")
    # 105 steps of a second, 5 of them twice, two start-ups of 10 s, on 4 GPUs.
    assert first["gpu_hours"]["useful"] == pytest.approx(100 * 4 / 3600)
    assert first["gpu_hours"]["replayed"] == pytest.approx(5 * 4 / 3600)
    assert first["gpu_hours"]["start_up"] == pytest.approx(20 * 4 / 3600)
    assert first["goodput"] == pytest.approx(100 / 125)
    assert first["goodput_with_queue"] == pytest.approx(100 / 175)
    assert told["total"]["gpu_hours"]["useful"] == pytest.approx(160 * 4 / 3600)
    assert told["total"]["total_gpu_hours"] == pytest.approx((125 + 70) * 4 / 3600)
    assert told["total"]["total_gpu_hours"] == pytest.approx(
        first["total_gpu_hours"] + second["total_gpu_hours"]
    )

    out = mgpt4("usage", "one", "two").out
    assert "80.0%" in out and "replayed" in out and "total" in out
    assert len(mgpt4("usage", "--json").json["runs"]) == 3
    assert "total" not in mgpt4("usage", "two").out


def test_many_runs_make_the_table_longer_and_not_wider(mgpt4: Mgpt4, tmp_path: Path) -> None:
    for number in range(12):
        attempt(make_run(tmp_path / "runs", f"run-{number:02d}"), 1, first=1, last=30)
    lines = mgpt4("usage").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("run-07") for line in lines) == 2


def test_a_run_on_cpus_has_used_no_gpu(mgpt4: Mgpt4, tmp_path: Path) -> None:
    attempt(make_run(tmp_path / "runs", "gpu"), 1, first=1, last=30, cause="finished")
    attempt(make_run(tmp_path / "runs", "cpu"), 1, first=1, last=30, cause="finished", device="cpu")
    for names, unit in ((["gpu"], "GPU"), (["cpu"], "process"), (["cpu", "gpu"], "device")):
        assert mgpt4("usage", *names).out.count(f"{unit}-hours") == 2
    assert "of the time that it held its GPUs" in mgpt4("history", "gpu").out
    told = mgpt4("history", "cpu").out
    assert "of the time that it ran" in told and "process hours" in told and "GPU" not in told


def test_nothing_to_tell(mgpt4: Mgpt4, tmp_path: Path) -> None:
    assert "no runs" in mgpt4("usage").err
    make_run(tmp_path / "runs")
    ended = mgpt4("usage", "one", "--json")
    assert (ended.code, ended.json["total"]["total_gpu_hours"]) == (0, 0)
    assert mgpt4("usage", "one").code == 0
    assert mgpt4("usage", "other").code == 6


def test_one_unreadable_run_does_not_hide_the_others(mgpt4: Mgpt4, tmp_path: Path) -> None:
    attempt(make_run(tmp_path / "runs", "one"), 1, first=1, last=30, cause="finished")
    newer = make_run(tmp_path / "runs", "newer")
    write_json(newer.identity_file, {"format_version": 99})
    ended = mgpt4("usage", "--json")
    assert [run["name"] for run in ended.json["runs"]] == ["one"]
    assert "left out" in ended.err and "format version 99" in ended.err
    assert mgpt4("usage", "newer").code == 7
