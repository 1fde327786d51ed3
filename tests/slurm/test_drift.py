"""A requeue that finds another timm stays away with the difference; a person may let it go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, wait_finished, wait_for_step
from tests.support.runs import REPO, assert_every_step_once, records
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

MAX_STEPS = 400


def submitted(cluster: Cluster, runs: Path, config: Path) -> str:
    done = mgpt4(cluster, runs, "submit", "--config", str(config), "--name", "run", "--json")
    return json.loads(done.stdout)[0]["job_id"]


@pytest.fixture
def config(tiny_world: TinyWorld, tmp_path: Path) -> Path:
    return tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=MAX_STEPS)


def test_another_timm_at_a_requeue_is_refused_shown_and_accepted_by_a_person(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    user = Cluster(cluster.folder)
    user.env["PYTHONPATH"] = f"{REPO}:{site}"
    runs = tmp_path / "runs"
    run = runs / "run"
    job = submitted(user, runs, config)
    wait_for_step(cluster, run, 5)
    # Somebody upgrades the environment while the run is trained.
    info = site / "timm-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 99.0\n")
    cluster.run(["scontrol", "requeue", job])
    ended = cluster.wait_for_state(job, "FAILED", timeout_s=120)
    assert (ended["ExitCode"], ended["Restarts"]) == ("70:0", "1")
    was = json.loads((run / "pins.json").read_text())["version of timm"]
    assert f"version of timm was {was}, is 99.0" in (run / "FAILED").read_text()
    assert read_ledgers(run / "ledger")[0].cause == "requeued"

    refused = mgpt4(user, runs, "resume", "run", check=False)
    assert refused.returncode == 7 and f"timm was {was}, is 99.0" in refused.stderr
    mgpt4(user, runs, "resume", "run", "--accept-drift")
    wait_finished(cluster, run)
    (drift,) = [record for record in records(run) if record["kind"] == "drift"]
    assert drift["accepted"] and drift["what"][0] == f"version of timm was {was}, is 99.0"
    assert_every_step_once(run, MAX_STEPS)


@pytest.mark.soak
def test_two_requeues_by_a_person_lose_no_step(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    job = submitted(cluster, tmp_path, config)
    run = tmp_path / "run"
    for restarts in (1, 2):
        wait_for_step(cluster, run, restarts * MAX_STEPS // 4)
        cluster.run(["scontrol", "requeue", job])
        cluster.run(["scontrol", "requeue", job], check=False)  # impatient: while it goes down
        cluster.wait_until(
            lambda: len(read_ledgers(run / "ledger")) > restarts,  # noqa: B023 - asked at once
            120,
            f"start {restarts + 1}",
        )
    wait_finished(cluster, run)
    attempts = read_ledgers(run / "ledger")
    assert [attempt.cause for attempt in attempts[:-1]] == ["requeued"] * (len(attempts) - 1)
    assert sum(attempt.steps_replayed for attempt in attempts) == 0
    assert_every_step_once(run, MAX_STEPS)
