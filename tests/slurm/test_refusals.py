"""What the scheduler would refuse is refused before, with the valid values, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.harness import Cluster
from tests.slurm.test_main_job import mgpt4
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


def test_an_unknown_partition_is_refused_with_the_known_ones(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml")
    runs = tmp_path / "runs"
    done = mgpt4(
        cluster, runs, "submit", "--config", str(config), "--partition", "a10", check=False
    )
    assert done.returncode == 3
    assert "'a10' does not exist: use one of a100, a100-preempt" in done.stderr
    assert not runs.exists()


def test_what_only_sbatch_knows_is_told_and_leaves_nothing(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml")
    runs = tmp_path / "runs"
    done = mgpt4(
        cluster, runs, "submit", "--config", str(config), "--constraint", "h100", check=False
    )
    assert done.returncode == 4, done.stderr
    assert "sbatch refused the job" in done.stderr
    assert not list(runs.glob("*"))
