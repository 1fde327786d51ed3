"""Work in parts on a real Slurm: an index made by an array is the one made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ScanOptions, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from tests.slurm.harness import Cluster
from tests.slurm.jobs import hold_parts
from tests.support.runs import patience
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

SLURM = ("--slurm", "--partition", "a100", "--time", "5")


def mgpt4(cluster: Cluster, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120 * patience(),
        env=cluster.env,
        check=False,
    )


def test_an_index_made_in_parts_is_the_same(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    shards, out, here = tiny_world.shards("laion"), tmp_path / "laion.index", tmp_path / "here"
    index = ("data", "index", shards, "--out", out, "--verify", "--json")
    made = mgpt4(cluster, *index, *SLURM, "--parts", 2)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    # Nothing was read again to put the parts together.
    assert told["num_reused"] == told["num_shards"] == 2
    build_index(expand_shards(shards), here / "laion.index", ScanOptions(verify=True))
    assert out.read_bytes() == (here / "laion.index").read_bytes()
    assert not Path(f"{out}.parts").exists()

    out.unlink()
    submitted = mgpt4(cluster, *index, *SLURM, "--no-wait")
    assert submitted.returncode == 0, submitted.stderr
    assert json.loads(submitted.stdout)["job_id"].isdigit()
    cluster.wait_until(out.exists, 60, "the index of the array that nobody waits for")
    assert out.read_bytes() == (here / "laion.index").read_bytes()


def test_parts_that_fail_are_reported(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    shards, out = tiny_world.shards("laion"), tmp_path / "laion.index"
    (tmp_path / "laion.index.parts").mkdir()
    (tmp_path / "laion.index.parts" / "1-of-2.index").mkdir()  # in the way of part 1's result
    failed = mgpt4(cluster, "data", "index", shards, "--out", out, *SLURM, "--parts", 2)
    assert failed.returncode == 1
    assert "1 of 2 parts did not end well" in failed.stderr
    assert "part 1: FAILED" in failed.stderr and "1.log" in failed.stderr
    assert not out.exists()


def test_a_part_that_may_not_be_requeued_is_done_by_another_job(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    user, gate, begun = hold_parts(cluster, tmp_path)
    shards, out = tiny_world.shards("laion"), tmp_path / "laion.index"
    index = ("data", "index", shards, "--out", out, *SLURM, "--parts", 2, "--no-wait", "--json")
    following = json.loads(mgpt4(user, *index).stdout)["job_id"]
    array = cluster.job(following)["Dependency"].removeprefix("afterok:").partition("_")[0]
    cluster.wait_until((begun / "1").exists, 60, "the part has begun")
    cluster.run(["scontrol", "update", f"JobId={array}_1", "Requeue=0"])
    cluster.run(["scancel", "--batch", "--signal=TERM", f"{array}_1"])
    noted = tmp_path / "laion.index.parts" / "1.job"
    cluster.wait_until(noted.exists, 60, "a successor")
    successor = noted.read_text()
    cluster.wait_for_state(f"{successor}_1", "RUNNING", timeout_s=60)
    waits_for = cluster.job(following)["Dependency"]
    assert f"afterok:{successor}" in waits_for and f"{array}_1" not in waits_for
    again = mgpt4(user, *index)
    assert "has the work already" in again.stderr
    gate.touch()
    cluster.wait_until(lambda: not cluster.squeue(), 120, "all is over")
    assert cluster.job(following)["JobState"] == "COMPLETED" and out.exists(), cluster.report()
