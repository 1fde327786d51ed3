"""The main job on a real Slurm: preempted, timed out, killed, chained; the bits are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.support.runs import (
    assert_every_step_once,
    curve,
    final_projector,
    last_step,
    log,
    records,
)
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

MAX_STEPS = 300
"""Long enough to be hit in the middle: at least ten seconds of steps on two cores."""


def mgpt4(cluster: Cluster, runs: Path, *arguments: str, check: bool = True):
    """Run the command line as a user would, in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *arguments],
        env={**cluster.env, "MGPT4_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def submit(cluster: Cluster, runs: Path, config: Path, name: str, *more: str) -> str:
    """Submit a run on two nodes, one rank each; the job's id."""
    where = ["--gpus", "2", "--nodes", "2", "--name", name, "--json"]
    done = mgpt4(cluster, runs, "submit", "--config", str(config), *where, *more)
    return json.loads(done.stdout)[0]["job_id"]


def wait_finished(cluster: Cluster, run: Path, timeout_s: float = 150) -> None:
    def over() -> bool:
        attempts = read_ledgers(run / "ledger")
        return bool(attempts) and attempts[-1].cause == "finished"

    try:
        cluster.wait_until(over, timeout_s, f"{run.name} finished")
    except AssertionError as error:
        raise AssertionError(f"{error}\n--- log of rank 0 ---\n{log(run)[-6000:]}") from None


def wait_for_step(cluster: Cluster, run: Path, step: int) -> None:
    cluster.wait_until(lambda: last_step(run) >= step, 120, f"{run.name} reached step {step}")


def preempt(cluster: Cluster) -> str:
    """Take all nodes for a moment through the partition with priority."""
    return cluster.sbatch("sleep 1", "--partition=a100", "--nodes=4", "--gpus-per-node=4")


@pytest.fixture(scope="module")
def config(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    return tiny_world.write_config(
        path, train__max_steps=MAX_STEPS, train__global_batch_size=16, train__micro_batch_size=4
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run left alone: what every other must equal."""
    runs = tmp_path_factory.mktemp("undisturbed")
    submit(cluster, runs, config, "alone")
    wait_finished(cluster, runs / "alone")
    return runs / "alone"


def test_a_preempted_run_comes_back_and_ends_bit_identical(
    cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    job = submit(cluster, tmp_path, config, "preempted", "--partition", "a100-preempt")
    run = tmp_path / "preempted"
    wait_for_step(cluster, run, 20)
    preempt(cluster)
    wait_finished(cluster, run)

    assert final_projector(run) == final_projector(undisturbed)
    assert curve(run) == curve(undisturbed)
    assert_every_step_once(run, MAX_STEPS)
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("preempted", "finished")
    assert first.requeue is not None and first.requeue["accepted"]
    assert second.restored_step == first.last_step
    assert second.steps_replayed == 0
    cluster.wait_until(
        lambda: (
            [row["State"] for row in cluster.sacct(job) if row["JobID"] == job]
            == ["REQUEUED", "COMPLETED"]
        ),
        30,
        "accounting knows both attempts",
    )


def test_a_run_whose_rank_was_killed_comes_back(
    cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    save_every_s = 2
    submit(
        cluster, tmp_path, config, "killed", "--set", f"save_every_s={save_every_s}",
        "--sbatch", "comment=kill -9",
    )  # fmt: skip
    run = tmp_path / "killed"
    cluster.wait_until(lambda: list(run.glob("checkpoints/step-*")), 120, "a first checkpoint")
    wait_for_step(cluster, run, last_step(run) + 10)
    os.kill(_pid_of_rank(run, 1), signal.SIGKILL)
    wait_finished(cluster, run)

    assert final_projector(run) == final_projector(undisturbed)
    assert_every_step_once(run, MAX_STEPS)
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("crashed", "finished")
    step_s = first.productive_s / max(first.steps_done, 1)
    assert second.steps_replayed * step_s <= save_every_s + 1.0


def test_a_run_whose_rank_was_stopped_is_ended_by_the_others_and_comes_back(
    cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    submit(
        cluster, tmp_path, config, "hung", "--set", "hang_timeout_s=5", "--set", "save_every_s=2"
    )
    run = tmp_path / "hung"
    cluster.wait_until(lambda: list(run.glob("checkpoints/step-*")), 120, "a first checkpoint")
    os.kill(_pid_of_rank(run, 0), signal.SIGSTOP)
    wait_finished(cluster, run, timeout_s=240)

    assert final_projector(run) == final_projector(undisturbed)
    assert_every_step_once(run, MAX_STEPS)
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("hung", "finished")
    # Slurm's CONT and TERM wake the stopped one, which then finds out for itself.
    assert 1 in [hang["rank"] for hang in first.hangs]
    (told,) = (path.read_text() for path in (run / "slurm").glob("*_1_log.out"))
    assert "=== hang: no sign of life" in told and "loop.py" in told


def _pid_of_rank(run: Path, rank: int) -> int:
    start = next(record for record in records(run) if record["kind"] == "start")
    return start["processes"][rank]["pid"]


def test_stage_2_follows_a_preempted_stage_1_and_starts_from_its_checkpoint(
    cluster: Cluster, config: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
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
    preempt(cluster)
    cluster.wait_until(lambda: cluster.job(jobs[0])["Restarts"] == "1", 60, "stage 1 was requeued")
    assert cluster.job(jobs[1])["JobState"] == "PENDING"
    wait_finished(cluster, two, timeout_s=240)

    assert [a.cause for a in read_ledgers(one / "ledger")] == ["preempted", "finished"]
    newest = max((one / "checkpoints").glob("step-*"))
    manifest = read_json(newest / "manifest.json")
    pins = read_json(two / "pins.json")
    assert pins["projector"] == manifest["files"]["projector"]["blake2b"]
    assert pins["about"]["projector"] == str(newest)


def test_a_run_goes_on_after_its_time_limit_and_ends_bit_identical(
    cluster: Cluster, undisturbed: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    # The shortest limit is a minute, and the warning comes 30 s before it: the run needs about
    # 45 s of steps, however fast this machine is.
    (attempt,) = read_ledgers(undisturbed / "ledger")
    steps = int(45 * attempt.steps_done / attempt.productive_s)
    config = tiny_world.write_config(
        tmp_path / "long.yaml",
        train__max_steps=steps,
        train__global_batch_size=16,
        train__micro_batch_size=4,
    )
    submit(cluster, tmp_path, config, "unlimited")
    wait_finished(cluster, tmp_path / "unlimited")
    job = submit(cluster, tmp_path, config, "long", "--time", "1", "--set", "signal_before_s=30")
    run = tmp_path / "long"
    wait_finished(cluster, run, timeout_s=240)

    assert final_projector(run) == final_projector(tmp_path / "unlimited")
    assert_every_step_once(run, steps)
    attempts = read_ledgers(run / "ledger")
    assert len(attempts) >= 2
    assert {a.cause for a in attempts[:-1]} == {"time limit"}
    assert sum(a.steps_replayed for a in attempts) == 0
    told = [r for r in records(run) if r["kind"] in ("signal", "steps", "stop_requested")]
    warned = next(n for n, r in enumerate(told) if r["kind"] == "signal")
    stopped = next(n for n, r in enumerate(told) if r["kind"] == "stop_requested")
    assert stopped > warned + 1, "steps were made between the warning and the stop"
    assert told[stopped]["t"] < told[stopped]["deadline"] == told[warned]["deadline"]
    assert int(cluster.job(job)["Restarts"]) == len(attempts) - 1


def test_a_cancelled_run_stays_away(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, config, "cancelled")
    run = tmp_path / "cancelled"
    wait_for_step(cluster, run, 10)
    cluster.run(["scancel", job])
    cluster.wait_until(lambda: job not in cluster.squeue(), 60, "the job left the queue")
    attempts = read_ledgers(run / "ledger")
    assert [a.cause for a in attempts] == ["cancelled"]
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"
