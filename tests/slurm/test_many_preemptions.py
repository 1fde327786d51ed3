"""Slurm holds a job that it had to requeue too often by itself; ours requeue themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, preempt
from tests.support.tiny_world import TinyWorld

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(2400)]

TIMES = 12
"""More than MaxBatchRequeue (5) counts twice over."""


def test_twelve_preemptions_in_a_row_lead_to_no_hold(
    cluster: Cluster,
    tiny_world: TinyWorld,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Each comes while the ranks import torch: then the batch script requeues the job."""
    config = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=60)
    done = mgpt4(
        cluster, tmp_path, "submit", "--config", str(config), "--gpus", "1", "--name", "x",
        "--partition", "a100-preempt", "--json",
    )  # fmt: skip
    job = json.loads(done.stdout)[0]["job_id"]

    def ranks_start() -> bool:
        steps = cluster.run(["squeue", "-hs", "-j", job]).stdout
        return cluster.job(job)["JobState"] == "RUNNING" and f"{job}.0" in steps

    for number in range(TIMES):
        cluster.wait_until(ranks_start, 120, f"start {number + 1}")
        preempt(cluster)
        cluster.wait_until(
            lambda: cluster.job(job)["Restarts"] == str(number + 1),  # noqa: B023 - asked at once
            120,
            f"it was requeued {number + 1} times",
        )
    cluster.wait_until(lambda: not cluster.squeue(), 300, "it is over")
    assert cluster.job(job)["Restarts"] == str(TIMES)
    causes = [attempt.cause for attempt in read_ledgers(tmp_path / "x" / "ledger")]
    record_property("attempts", len(causes))
    # On a busy machine a grace time may end before the batch script asks; then Slurm requeues.
    assert causes[-1] == "finished" and set(causes[:-1]) <= {"preempted", "requeued"}
    (row,) = json.loads(mgpt4(cluster, tmp_path, "status", "--json").stdout)
    assert row["state"] == "finished"
