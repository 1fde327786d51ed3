"""Whatever is done to names, folders and jobs, in any order: no run harms another.

A few schedules run every time, 300 in a soak: MGPT4_SCHEDULES=FIRST-LAST chooses others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import submit, wait_finished
from tests.slurm.schedules import SAVE_EVERY_S, Schedule
from tests.support.fork_python import ForkPython
from tests.support.runs import final_projector
from tests.support.tiny_world import TinyWorld

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

IN_CI = 4
IN_A_SOAK = 300


def seeds() -> list:
    """Numbers of the schedules to run, as parameters."""
    if chosen := os.environ.get("MGPT4_SCHEDULES"):
        first, _, last = chosen.partition("-")
        return list(range(int(first), int(last or first) + 1))
    rest = (pytest.param(n, marks=pytest.mark.soak) for n in range(IN_CI, IN_A_SOAK))
    return [*range(IN_CI), *rest]


@pytest.fixture(scope="module")
def beta(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A second cluster that sees the same files."""
    flags = ("--cluster-name", "beta", "--no-accounting", "--nodes", "2")
    with own_cluster(request.session, *flags) as started:
        yield started


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The executable that ranks are started with."""
    server = ForkPython(tmp_path_factory.mktemp("python"))
    with pytest.MonkeyPatch.context() as patch:
        here = "mgpt4_hpc.launch.submit.container.rank_python"
        patch.setattr(here, lambda container: str(server.path))
        yield server.path
    server.close()


@pytest.fixture(scope="module")
def variants(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    return {
        name: tiny_world.write_config(
            folder / f"{name}.yaml",
            seed=seed,
            train__max_steps=40,
            train__save_every_s=SAVE_EVERY_S,
        )
        for name, seed in (("first", 1), ("second", 2))
    }


@pytest.fixture(scope="module")
def expected(
    cluster: Cluster,
    python: Path,
    variants: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """The projector of each variant's undisturbed run, by the digest of its settings."""
    runs = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for name, config in variants.items():
        submit(cluster, runs, config, name, ranks=1)
        wait_finished(cluster, runs / name)
        digest = read_json(runs / name / "run.json")["config_digest"]
        found[digest] = final_projector(runs / name)
    assert len(set(found.values())) == len(variants)
    return found


@pytest.mark.parametrize("seed", seeds())
def test_no_run_harms_another(
    seed: int,
    cluster: Cluster,
    beta: Cluster,
    variants: dict[str, Path],
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    clusters = {"alpha": cluster, "beta": beta, "": None}
    schedule = Schedule(seed, tmp_path / "runs", variants, expected, clusters)
    try:
        schedule.run()
    finally:
        schedule.end()
