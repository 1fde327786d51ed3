"""``mgpt4 compare``: two results, from evaluations or of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    same = mgpt4("compare", run.path, run.path, "--images", images, *SHORT, "--json")
    assert same.code == 0, same.err
    assert_schema("compare", same.json)
    assert all(row["first"] == row["second"] for row in same.json["differences"])
    one, two = same.json["models"]
    assert one == two
    ended = mgpt4("compare", run.path, other.path, "--images", images, *SHORT, "--html", "c.html")
    assert ended.code == 0, ended.err
    assert "A: two step-00000012" in ended.out and "B: three step-00000012" in ended.out
    assert "three step-00000012" in Path("c.html").read_text()


@pytest.mark.slow
def test_two_runs_of_one_name_are_told_apart(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    namesake = make_trained_run(world, tmp_path / "mine" / "two", seed=3)
    ended = mgpt4("compare", run.path, namesake.path, "--images", world.align / "image", *SHORT)
    assert ended.code == 0, ended.err
    assert f"A: {run.path.parent.name}/two step-00000012" in ended.out
    assert "B: mine/two step-00000012" in ended.out
