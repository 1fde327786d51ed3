"""Both stages in a chain on a real Slurm; what can happen to one run is in test_faults.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import long_config, mgpt4, preempt, wait_finished, wait_for_step
from tests.support.tiny_world import TinyWorld

pytestmark = [pytest.mark.slurm, pytest.mark.every_slurm]


def test_stage_2_follows_a_preempted_stage_1_and_starts_from_its_checkpoint(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = long_config(tiny_world, tmp_path / "one.yaml")
    second = tiny_world.write_config(tmp_path / "two.yaml", stage=2, train__max_steps=8)
    runs = tmp_path / "runs"
    done = mgpt4(
        cluster, runs, "submit", "--stage", "both", "--config", str(config), "--config",
        str(second), "--gpus", "2", "--partition", "a100-preempt", "--name", "x", "--json",
    )  # fmt: skip
    jobs = [entry["job_id"] for entry in json.loads(done.stdout)]
    one, two = runs / "x-stage1", runs / "x-stage2"
    wait_for_step(cluster, one, 20)
    assert cluster.job(jobs[1])["Dependency"].startswith(f"afterok:{jobs[0]}")
    preempt(cluster, one)
    cluster.wait_until(lambda: cluster.job(jobs[0])["Restarts"] == "1", 60, "stage 1 was requeued")
    assert cluster.job(jobs[1])["JobState"] == "PENDING"
    wait_finished(cluster, two, timeout_s=600)

    assert [a.cause for a in read_ledgers(one / "ledger")] == ["preempted", "finished"]
    newest = max((one / "checkpoints").glob("step-*"))
    manifest = read_json(newest / "manifest.json")
    pins = read_json(two / "pins.json")
    assert pins["projector"] == manifest["files"]["projector"]["blake2b"]
    assert pins["about"]["projector"] == str(newest)
