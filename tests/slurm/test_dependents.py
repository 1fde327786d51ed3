"""A dependent job does not wait for ever, and comes back with the run that it waits for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, stand_still, wait_for_step, wake
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


def test_resume_points_dependents_to_the_new_job(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    first = tiny_world.write_config(
        tmp_path / "one.yaml", train__max_steps=600, train__global_batch_size=4
    )
    second = tiny_world.write_config(tmp_path / "two.yaml", stage=2, train__max_steps=4)
    runs = tmp_path / "runs"
    both = ["--stage", "both", "--config", str(first), "--config", str(second), "--gpus", "1"]
    told = mgpt4(cluster, runs, "submit", *both, "--name", "x", "--json")
    one, two = (entry["job_id"] for entry in json.loads(told.stdout))
    wait_for_step(cluster, runs / "x-stage1", 2)
    ranks = stand_still(runs / "x-stage1")
    starts = json.loads(mgpt4(cluster, runs, "submit", *both, "--name", "y", "--test-only",
                              "--json").stdout)  # fmt: skip
    assert [(start["job"], start["after"]) for start in starts] == [
        ("y-stage1", None),
        ("y-stage2", "y-stage1"),
    ]

    # One cancelled by hand is not told as if the first had failed.
    by_hand = mgpt4(cluster, runs, "submit", "--config", str(second), "--gpus", "1", "--name", "z",
                    "--after", "x-stage1", "--json")  # fmt: skip
    cluster.run(["scancel", json.loads(by_hand.stdout)[0]["job_id"]])

    def told_of_z() -> str:
        return json.loads(mgpt4(cluster, runs, "status", "z", "--json").stdout)[0]["text"]

    # Accounting hears of it a moment later than squeue.
    cluster.wait_until(lambda: told_of_z() == "cancelled by user 0", 30, "cancelled by hand")

    # Cancelled, the first takes the second with it, instead of letting it wait for ever.
    mgpt4(cluster, runs, "cancel", "x-stage1", "--save")
    wake(ranks)
    cluster.wait_until(lambda: not cluster.squeue(), 60, "both left the queue")
    assert cluster.job(two)["JobState"] == "CANCELLED"

    resumed = mgpt4(cluster, runs, "resume", "x-stage1")
    third = read_json(runs / "x-stage1" / "slurm" / "job.json")["job_id"]
    fourth = read_json(runs / "x-stage2" / "slurm" / "job.json")["job_id"]
    assert len({one, two, third, fourth}) == 4
    assert f"x-stage2, which waited for x-stage1, is job {fourth} now" in resumed.stderr
    cluster.wait_until(lambda: not cluster.squeue(), 400, "both ran")
    rows = json.loads(mgpt4(cluster, runs, "status", "--json").stdout)
    assert {row["name"]: row["state"] for row in rows} == {
        "x-stage1": "finished",
        "x-stage2": "finished",
        "z": "cancelled",
    }
