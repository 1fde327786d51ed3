"""Runs on the test cluster: submitted as a user would, watched by what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.support.runs import REPO, assert_every_step_once, last_step, log, records
from tests.support.shown import assert_schema
from tests.support.tiny_world import TinyWorld

MAX_STEPS = 300
"""Long enough to be hit in the middle: at least ten seconds of steps on two cores."""


def long_config(tiny_world: TinyWorld, path: Path, steps: int = MAX_STEPS) -> Path:
    """A configuration of so many steps, the same on any number of ranks up to four."""
    return tiny_world.write_config(
        path, train__max_steps=steps, train__global_batch_size=16, train__micro_batch_size=4
    )


def mgpt4(cluster: Cluster, runs: Path, *arguments: str, check: bool = True):
    """Run the command line as a user would, in its own process."""
    with begin_mgpt4(cluster, runs, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    assert not check or process.returncode == 0, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def begin_mgpt4(cluster: Cluster, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    """The same, still running."""
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *arguments],
        env={**cluster.env, "MGPT4_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(
    cluster: Cluster, runs: Path, config: Path, name: str, *more: str, ranks: int = 2
) -> str:
    """Submit a run with one rank on each of its nodes; the job's id."""
    where = ["--gpus", str(ranks), "--nodes", str(ranks), "--name", name, "--json"]
    done = mgpt4(cluster, runs, "submit", "--config", str(config), *where, *more)
    told = json.loads(done.stdout)
    assert_schema("submit", told)
    return told[0]["job_id"]


def wait_finished(
    cluster: Cluster,
    run: Path,
    timeout_s: float = 300,
    alive: Callable[[], object] = lambda: True,
) -> None:
    """Wait for the run's last attempt to say so; a failure shows rank 0's log.

    ``alive`` tells whether there is anything to wait for.
    """

    def over() -> bool:
        living = alive()
        attempts = read_ledgers(run / "ledger")
        finished = bool(attempts) and attempts[-1].cause == "finished"
        assert finished or living, f"{run.name} is over, and not finished: {attempts[-1:]}"
        return finished

    try:
        cluster.wait_until(over, timeout_s, f"{run.name} finished")
    except AssertionError as error:
        raise AssertionError(f"{error}\n--- log of rank 0 ---\n{log(run)[-6000:]}") from None


def wait_for_step(cluster: Cluster, run: Path, step: int) -> None:
    """Wait until the ledger tells of this step or a later one."""
    cluster.wait_until(lambda: last_step(run) >= step, 300, f"{run.name} reached step {step}")


def wait_for_checkpoints(cluster: Cluster, run: Path, number: int = 1) -> None:
    """Wait until so many checkpoints are durable."""
    cluster.wait_until(
        lambda: len(list(run.glob("checkpoints/step-*"))) >= number, 300, f"{number} checkpoints"
    )


def preempt(cluster: Cluster) -> str:
    """Take all nodes for a moment through the partition with priority; that job's id."""
    return cluster.sbatch("sleep 1", "--partition=a100", "--nodes=4", "--gpus-per-node=4")


_GATE = """import os, sys, time
while "--part" in sys.orig_argv and not os.path.exists({path!r}):
    time.sleep(0.1)
"""


def hold_parts(cluster: Cluster, folder: Path) -> tuple[Cluster, Path]:
    """A user whose parts of ``mgpt4 ... --slurm`` wait until the file is there.

    Parts of the tiny world are done too soon to be preempted at work.
    """
    gate, modules = folder / "gate", folder / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(_GATE.format(path=str(gate)))
    user = copy(cluster)
    user.env = {**cluster.env, "PYTHONPATH": f"{REPO}:{modules}"}
    return user, gate


def preempt_contained(
    cluster: Cluster, search_path: str, config: Path, runs: Path, steps: int
) -> Path:
    """Submit a run whose ranks are in a container, preempt it, and check its end; the run."""
    outside = copy(cluster)
    outside.env = {**cluster.env, "PATH": search_path}
    where = ["--name", "contained", "--gpus", "1", "--partition", "a100-preempt"]
    mgpt4(outside, runs, "submit", "--config", str(config), *where)
    run = runs / "contained"
    wait_for_step(cluster, run, 10)
    preempt(cluster)
    wait_finished(cluster, run)
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("preempted", "finished")
    assert first.supervisor, "the batch script found out why"
    assert second.steps_replayed == 0
    assert_every_step_once(run, steps)
    return run


def pid_of_rank(run: Path, rank: int) -> int:
    """Process id of a rank of the newest attempt."""
    start = [record for record in records(run) if record["kind"] == "start"][-1]
    return start["processes"][rank]["pid"]
