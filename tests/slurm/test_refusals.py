"""What the scheduler would refuse is refused before, with the valid values, and leaves nothing."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4
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
    assert "'a10' does not exist: use one of a100, a100-preempt, cpu" in done.stderr
    assert not runs.exists()


def test_features_and_nodes_are_refused_with_what_there_is(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml")
    wanted = ["--constraint", "h100|a100_80", "--exclude", "node[4-5]"]
    done = mgpt4(
        cluster, tmp_path, "submit", "--config", str(config), "--dry-run", *wanted, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "has the feature 'h100': use one of a100, a100_80g" in done.stderr
    assert "has the feature 'a100_80': use one of" in done.stderr
    assert "there is no node 'node5' in partition a100" in done.stderr
    assert "use some of node[1-4]" in done.stderr


def test_what_only_sbatch_knows_is_told_and_leaves_nothing(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml")
    runs = tmp_path / "runs"
    done = mgpt4(
        cluster, runs, "submit", "--config", str(config), "--sbatch", "reservation=mine",
        check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "sbatch refused the job" in done.stderr and "--reservation=mine" in done.stderr
    assert "`scontrol show reservation` lists them" in done.stderr
    assert not list(runs.glob("*"))


def test_a_job_can_submit_a_run_and_forces_nothing_upon_it(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml")
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "mgpt4_hpc.cli.main", "submit", "--config", str(config)]
    command += ["--gpus", "1", "--runs-dir", str(runs), "--sbatch", "begin=now+1hour"]
    outer = cluster.sbatch(
        f"export SBATCH_PARTITION=nowhere\nexec {shlex.join(command)}",
        "--nodes=2", "--ntasks-per-node=3", "--time=7", "--job-name=outer",
    )  # fmt: skip
    cluster.wait_for_state(outer, "COMPLETED", timeout_s=60)
    job = cluster.job(read_json(runs / "tiny-stage1" / "slurm" / "job.json")["job_id"])
    assert (job["JobName"], job["Partition"], job["NumTasks"]) == ("tiny-stage1", "a100", "1")
    assert (job["NumNodes"], job["TimeLimit"]) == ("1-1", "1-00:00:00")
