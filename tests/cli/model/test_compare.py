"""``mgpt4 compare``: two results, from evaluations or of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.shown import assert_schema
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

SHORT = ("--max-new-tokens", 6, "--limit", 4)


@pytest.mark.slow
def test_a_run_against_itself_and_another(
    mgpt4: Mgpt4, run: RunDir, other: RunDir, world: TinyWorld
) -> None:
    images = world.align / "image"
    shutil.copytree(run.path, "copy/copied")
    same = mgpt4("compare", run.path, "copy/copied", "--images", images, *SHORT, "--json")
    assert same.code == 0, same.err
    assert_schema("compare", same.json)
    assert all(row["first"] == row["second"] for row in same.json["differences"])
    one, two = same.json["models"]
    assert one["tasks"] == two["tasks"]
    ended = mgpt4("compare", run.path, other.path, "--images", images, *SHORT, "--html", "c.html")
    assert ended.code == 0, ended.err
    assert "A: two step-00000012" in ended.out and "B: three step-00000012" in ended.out
    assert "three step-00000012" in Path("c.html").read_text()


@pytest.mark.slow
def test_a_sweep_is_compared_run_by_run(
    mgpt4: Mgpt4, run: RunDir, other: RunDir, world: TinyWorld
) -> None:
    members = [RunDir(Path("runs").absolute() / name) for name in ("s-a", "s-b")]
    for made, trained in zip(members, (run, other), strict=True):
        shutil.copytree(trained.path, made.path)
    create_sweep(SweepDir.of("s", Path("runs").absolute()), members, [{}] * 2, "local")
    images = ("--images", world.align / "image", *SHORT)
    found = mgpt4("compare", "s", run.path, *images, "--json").json
    assert [one["model"] for one in found["models"]] == [
        f"{name} step-00000012" for name in ("s-a", "s-b", "two")
    ]
    of_each = {name: [] for name in ("s-b step-00000012", "two step-00000012")}
    for row in found["differences"]:
        of_each[row["model"]].append(row["second"] - row["first"])
    assert any(of_each["s-b step-00000012"]) and not any(of_each["two step-00000012"])
    ended = mgpt4("compare", "s", run.path, "s-a", *images, "--html", "c.html")
    assert ended.out.startswith("A: s-a step-00000012\nB: s-b step-00000012\nC: two step")
    assert "\nD: " not in ended.out
    assert len([line for line in ended.out.splitlines() if line.startswith("C ")]) == len(
        of_each["two step-00000012"]
    )
    assert "s-b step-00000012" in Path("c.html").read_text()
    for names in ((run.path,), (run.path, f"{run.path}@12")):
        alone = mgpt4("compare", *names, *images)
        assert alone.code == 2 and "give two models, or a sweep" in alone.err


@pytest.mark.slow
def test_two_runs_of_one_name_are_told_apart(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    namesake = make_trained_run(world, tmp_path / "mine" / "two", seed=3)
    ended = mgpt4("compare", run.path, namesake.path, "--images", world.align / "image", *SHORT)
    assert ended.code == 0, ended.err
    assert f"A: {run.path.parent.name}/two step-00000012" in ended.out
    assert "B: mine/two step-00000012" in ended.out
