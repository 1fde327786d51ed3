"""Sweeps on a real Slurm: one array, a run for each task, and each task for itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, preempt, stand_still, wait_for_step
from tests.support.runs import assert_every_step_once, curve
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


def states(cluster: Cluster, runs: Path, sweep: str) -> list[str]:
    told = mgpt4(cluster, runs, "status", sweep, "--json")
    return [row["state"] for row in json.loads(told.stdout)]


def submit_sweep(
    cluster: Cluster, runs: Path, config: Path, name: str, *more: str
) -> list[dict[str, object]]:
    arguments = ["submit", "--config", str(config), "--name", name, "--gpus", "1", "--json", *more]
    told: list[dict[str, object]] = json.loads(mgpt4(cluster, runs, *arguments).stdout)
    return told


def sweep_through(
    cluster: Cluster, world: TinyWorld, folder: Path, seeds: int, parallel: int, timeout_s: float
) -> list[str]:
    """What status says in the end of each of a sweep's ``2 x seeds`` runs."""
    config = world.write_config(folder / "c.yaml", train__max_steps=4, train__global_batch_size=2)
    runs = folder / "runs"
    all_seeds = ",".join(map(str, range(seeds)))
    jobs = submit_sweep(
        cluster, runs, config, "many", "--sweep", "lr=1e-2,3e-3", "--sweep", f"seed={all_seeds}",
        "--max-parallel", str(parallel), "--set", "save_every_s=300",
    )  # fmt: skip
    assert len(jobs) == 2 * seeds
    array = str(jobs[0]["job_id"]).partition("_")[0]
    assert [job["job_id"] for job in jobs] == [f"{array}_{n}" for n in range(2 * seeds)]
    most = 0

    def over() -> bool:
        nonlocal most
        listed = cluster.run(["squeue", "-h", "-r", "-j", array, "-t", "R"], check=False)
        most = max(most, len(listed.stdout.splitlines()))
        return not cluster.squeue()

    cluster.wait_until(over, timeout_s, f"all of {2 * seeds} runs are over")
    assert 0 < most <= parallel
    first, last = (runs / str(jobs[n]["run"]) for n in (0, -1))
    assert (first.name, last.name) == ("many-lr1e-2-seed0", f"many-lr3e-3-seed{seeds - 1}")
    # Each run has the settings and the log that its name promises.
    assert curve(first) != curve(last)
    assert (last / "slurm" / f"{jobs[-1]['job_id']}_0_log.out").read_text()
    return states(cluster, runs, "many")


def test_a_sweep_of_ten_runs_finishes_and_is_shown(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    told = sweep_through(cluster, tiny_world, tmp_path, seeds=5, parallel=3, timeout_s=180)
    assert told == ["finished"] * 10


@pytest.mark.soak
def test_a_sweep_of_a_hundred_runs_finishes_and_is_shown(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    told = sweep_through(cluster, tiny_world, tmp_path, seeds=50, parallel=4, timeout_s=1800)
    assert told == ["finished"] * 100


def test_each_task_is_preempted_told_of_cancelled_and_resumed_by_itself(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    steps = 150
    config = tiny_world.write_config(
        tmp_path / "c.yaml", train__max_steps=steps, train__global_batch_size=8
    )
    told = tmp_path / "told.jsonl"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> {told}\n")
    hook.chmod(0o755)
    runs = tmp_path / "runs"
    goes_on, cancelled = submit_sweep(
        cluster, runs, config, "pair", "--sweep", "seed=1,2", "--partition", "a100-preempt",
        "--set", f"launch.on_event=[{hook}]",
    )  # fmt: skip
    one, two = runs / str(goes_on["run"]), runs / str(cancelled["run"])
    for run in (one, two):
        wait_for_step(cluster, run, 10)
        stand_still(run)  # one may start much later, and the command takes seconds
    mgpt4(cluster, runs, "cancel", two.name)
    cluster.wait_until(
        lambda: [a.cause for a in read_ledgers(two / "ledger")] == ["cancelled"], 60, "cancelled"
    )
    preempt(cluster)
    cluster.wait_until(lambda: not cluster.squeue(), 150, "the other came back and finished")

    first, second = read_ledgers(one / "ledger")
    assert (first.cause, second.cause) == ("preempted", "finished")
    assert first.job_id == second.job_id == goes_on["job_id"]
    assert second.steps_replayed == 0
    assert_every_step_once(one, steps)
    assert states(cluster, runs, "pair") == ["finished", "cancelled"]

    events = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(e["event"], e["run"], e["restart_count"]) for e in events] == [
        ("preempted", one.name, 0),
        ("finished", one.name, 1),
    ]
    assert events[0]["step"] == first.last_step and events[1]["step"] == steps

    # What was one of an array goes on alone, as a job of its own.
    resumed = json.loads(mgpt4(cluster, runs, "resume", "pair", "--json").stdout)
    assert [(r["run"], r["finished"]) for r in resumed] == [(one.name, True), (two.name, False)]
    assert "_" not in read_json(two / "slurm" / "job.json")["job_id"]
    cluster.wait_until(lambda: not cluster.squeue(), 120, "the cancelled one was resumed")
    assert states(cluster, runs, "pair") == ["finished", "finished"]
    assert_every_step_once(two, steps)


def test_what_is_resumed_keeps_how_many_may_run_at_once(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(
        tmp_path / "c.yaml", train__max_steps=4, train__global_batch_size=2
    )
    runs = tmp_path / "runs"
    gate = tmp_path / "gate"
    submit_sweep(
        cluster, runs, config, "two", "--sweep", "seed=1,2,3", "--max-parallel", "1",
        "--set", f"launch.setup=['while [ ! -e {gate} ]; do sleep 0.2; done']",
    )  # fmt: skip
    cancelled = ["two-seed2", "two-seed3"]
    mgpt4(cluster, runs, "cancel", *cancelled)
    # They wait for the first, which is still a task of the array, and for each other.
    resumed = json.loads(mgpt4(cluster, runs, "resume", "two", "--json").stdout)
    assert [one["run"] for one in resumed] == cancelled
    gate.touch()
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, list(cluster.squeue().values()).count("RUNNING"))
        return not cluster.squeue()

    cluster.wait_until(over, 120, "all three are over")
    assert most == 1
    assert states(cluster, runs, "two") == ["finished"] * 3
