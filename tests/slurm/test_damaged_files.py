"""Files that a power loss left empty or cut, found by the next start of a job on a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json, write_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once, log
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

MAX_STEPS = 600


@pytest.fixture
def held(cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path) -> tuple[str, Path]:
    """A run with a checkpoint whose job is back in the queue and held; it makes its own index."""
    config = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=MAX_STEPS)
    done = mgpt4(cluster, tmp_path, "submit", "--config", str(config), "--name", "run", "--json")
    job, run = json.loads(done.stdout)[0]["job_id"], tmp_path / "run"
    wait_for_step(cluster, run, 20)
    cluster.run(["scontrol", "requeuehold", job])
    cluster.wait_for_state(job, "PENDING", "REQUEUE_HOLD", timeout_s=60)
    assert list(run.glob("checkpoints/step-*")) and list(run.glob("data/*.index"))
    return job, run


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def test_what_can_be_made_again_is_made_by_the_job_itself(
    cluster: Cluster, held: tuple[str, Path]
) -> None:
    job, run = held
    cut(run / "code/mgpt4_hpc/train/loop.py", 0.5)
    cut(run / "code/mgpt4_hpc/launch/supervise.py", 0)
    for cached in run.glob("code/mgpt4_hpc/errors*.pyc"):
        cut(cached, 0.5)
    cut(run / "slurm" / "python", 0)
    cut(run / "slurm" / f"{job}_submitted.pkl", 0.5)
    for index in run.glob("data/*.index"):
        cut(index, 0)
    cluster.run(["scontrol", "release", job])
    wait_finished(cluster, run, timeout_s=400)
    assert "supervise.py, code/mgpt4_hpc/train/loop.py: taken again from" in log(run)
    assert [attempt.cause for attempt in read_ledgers(run / "ledger")] == ["requeued", "finished"]
    assert_every_step_once(run, MAX_STEPS)


@pytest.mark.parametrize("name", ["code/mgpt4_hpc/train/loop.py", "pins.json", "config.yaml"])
def test_what_cannot_ends_the_run_once_with_the_files_name(
    cluster: Cluster, held: tuple[str, Path], name: str
) -> None:
    job, run = held
    identity = read_json(run / "run.json")
    write_json(run / "run.json", {**identity, "code_digest": "that of another version"})
    cut(run / name, 0.5)
    cluster.run(["scontrol", "release", job])
    ended = cluster.wait_for_state(job, "FAILED", timeout_s=300)
    assert ended["ExitCode"] == "70:0" and ended["Restarts"] == "1", ended
    assert name in (run / "FAILED").read_text() and "fix: " in (run / "FAILED").read_text()
    assert name in mgpt4(cluster, run.parent, "status", "run").stdout
