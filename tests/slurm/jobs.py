"""Runs on the test cluster: submitted as a user would, watched by what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.support.runs import (
    REPO,
    assert_every_step_once,
    last_step,
    log,
    patience,
    records,
)
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
        output, errors = process.communicate(timeout=120 * patience())
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


def stand_still(run: Path) -> list[int]:
    """Stop the ranks of the newest attempt, so that it does not finish meanwhile; their ids.

    Slurm wakes what it preempts, cancels or requeues.
    """
    pids = pids_of_ranks(run)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def wake(pids: list[int]) -> None:
    """Let ranks go on that stand still."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def preempt(cluster: Cluster, *runs: Path, seconds: int = 1) -> str:
    """Take all nodes for a moment through the partition with priority; that job's id.

    ``runs`` stand still until Slurm wakes them: it thinks for seconds first, in which a fast
    machine would finish them.
    """
    for run in runs:
        stand_still(run)
    taking = ("--partition=a100", "--nodes=4", "--gpus-per-node=4")
    return cluster.sbatch(f"exec sleep {seconds}", *taking)


_GATE = """import os, sys, time
if "--part" in sys.orig_argv:
    open(os.path.join({begun!r}, os.environ["SLURM_ARRAY_TASK_ID"]), "w").close()
    while not os.path.exists({gate!r}):
        time.sleep(0.1)
"""


def hold_parts(cluster: Cluster, folder: Path) -> tuple[Cluster, Path, Path]:
    """A user whose parts of ``mgpt4 ... --slurm`` wait until a file is there.

    Parts of the tiny world are done too soon to be preempted at work.

    Returns:
        The user, the file, and a folder with a file for each part that waits, named by its number.
        Slurm shows a part as running before its script can take a signal.
    """
    gate, begun, modules = (folder / name for name in ("gate", "begun", "modules"))
    begun.mkdir()
    modules.mkdir()
    text = _GATE.format(gate=str(gate), begun=str(begun))
    (modules / "sitecustomize.py").write_text(text)
    user = copy(cluster)
    user.env = {**cluster.env, "PYTHONPATH": f"{REPO}:{modules}"}
    return user, gate, begun


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
    preempt(cluster, run)
    wait_finished(cluster, run)
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("preempted", "finished")
    assert first.supervisor, "the batch script found out why"
    assert second.steps_replayed == 0
    assert_every_step_once(run, steps)
    return run


def pid_of_rank(run: Path, rank: int) -> int:
    """Process id of a rank of the newest attempt."""
    return pids_of_ranks(run)[rank]


def pids_of_ranks(run: Path) -> list[int]:
    """Process ids of the newest attempt's ranks, in their order."""
    start = [record for record in records(run) if record["kind"] == "start"][-1]
    return [process["pid"] for process in start["processes"]]
