"""A job that Slurm suspends goes on where it was when it wakes, and the time costs no GPU hours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import long_config, mgpt4, submit, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 100
HANG_TIMEOUT_S = 8
SUSPENDED_S = 35
"""Longer than all that ends a hang: the watchdog's time, and its alarm's 23 s."""


@pytest.mark.every_slurm
def test_a_suspended_run_wakes_and_goes_on(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    def suspend(job: str) -> None:
        cluster.run(["scontrol", "suspend", job])

    def wake(job: str) -> None:
        cluster.run(["scontrol", "resume", job])

    _assert_sleeps_and_goes_on(cluster, tiny_world, tmp_path, suspend, wake)


@pytest.mark.soak
def test_a_run_whose_cores_are_taken_by_turns_goes_on(
    request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    with own_cluster(request.session, "--preempt-mode", "SUSPEND") as cluster:
        # All cores, and no GPU: a suspended job keeps those.
        taking = ("--partition=a100", "--nodes=4", "--ntasks-per-node=64", "--mem=1")
        taken: list[str] = []

        def suspend(job: str) -> None:
            taken.append(cluster.sbatch("sleep 600", *taking))

        def wake(job: str) -> None:
            cluster.run(["scancel", *taken])

        _assert_sleeps_and_goes_on(cluster, tiny_world, tmp_path, suspend, wake)


def _assert_sleeps_and_goes_on(
    cluster: Cluster,
    tiny_world: TinyWorld,
    tmp_path: Path,
    suspend: Callable[[str], None],
    wake: Callable[[str], None],
) -> None:
    config, runs = long_config(tiny_world, tmp_path / "tiny.yaml", STEPS), tmp_path / "runs"
    settings = ("--partition", "a100-preempt", "--set", f"hang_timeout_s={HANG_TIMEOUT_S}")
    job = submit(cluster, runs, config, "run", *settings)
    run = runs / "run"
    wait_for_step(cluster, run, 5)
    suspend(job)
    cluster.wait_for_state(job, "SUSPENDED", timeout_s=60)
    since = time.monotonic()
    (row,) = json.loads(mgpt4(cluster, runs, "status", "--json", "run").stdout)
    assert row["text"] == "suspended: it goes on where it was"
    cluster.wait_until(lambda: time.monotonic() - since > SUSPENDED_S, 60, "it slept long enough")
    assert cluster.job(job)["JobState"] == "SUSPENDED"
    wake(job)
    wait_finished(cluster, run, alive=cluster.squeue)

    (attempt,) = read_ledgers(run / "ledger")
    assert cluster.job(job)["Restarts"] == "0"
    assert attempt.buckets["suspended"] > SUSPENDED_S - 3
    assert attempt.productive_s < attempt.seconds - SUSPENDED_S
    assert_every_step_once(run, STEPS)
    (used,) = json.loads(mgpt4(cluster, runs, "usage", "--json", "run").stdout)["runs"]
    assert used["suspended_h"] == pytest.approx(attempt.buckets["suspended"] / 3600)
    awake_h = (attempt.seconds - attempt.buckets["suspended"]) / 3600
    assert used["total_gpu_hours"] == pytest.approx(2 * awake_h)
