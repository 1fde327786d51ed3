"""A run is made longer, branched off and moved, preempted before and after, and keeps its bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.telemetry.ledger import read_changes, read_ledgers
from mgpt4_hpc.train.stopping.stop_schedule import DECISION_S, MARGIN_S
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, pid_of_rank, preempt, submit, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once, curve, final_projector, records
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 300
EARLY = 20
PREEMPTIBLE = ("--partition", "a100-preempt")


@pytest.fixture
def world(tiny_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """A copy of the weights and the data, which may be moved."""
    return TinyWorld(shutil.copytree(tiny_world.root, tmp_path / "world"))


@pytest.fixture
def config(world: TinyWorld, tmp_path: Path) -> Path:
    return write_config(world, tmp_path)


def write_config(world: TinyWorld, folder: Path) -> Path:
    return world.write_config(
        folder / "one.yaml",
        train__max_steps=STEPS,
        train__min_lr=0.0005,
        train__save_every_s=1,
        checkpoint__keep_last=50,
    )


@contextmanager
def standing_still(run: Path) -> Iterator[None]:
    """Keep the run's only rank from finishing meanwhile."""
    pid = pid_of_rank(run, 0)
    os.kill(pid, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def signals(run: Path) -> list[dict[str, Any]]:
    """Signals to stop in the run's ledgers, with their deadlines."""
    return [record for record in records(run) if record["kind"] == "signal"]


def preempted(cluster: Cluster, run: Path, step: int) -> None:
    """Take the run's node once it is at ``step``, and wait until it trains again."""
    wait_for_step(cluster, run, step)
    starts = len(read_ledgers(run / "ledger"))
    before = len(signals(run))
    # It must not finish before Slurm comes, whose CONT at a preemption wakes it.
    os.kill(pid_of_rank(run, 0), signal.SIGSTOP)
    preempt(cluster)
    cluster.wait_until(lambda: len(signals(run)) > before, 120, f"{run.name} had its TERM")
    # Nor in the seconds of its grace time in which it trains on.
    with standing_still(run):
        last_moment = (signals(run)[-1]["deadline"] or 0.0) - DECISION_S - MARGIN_S
        cluster.wait_until(lambda: time.time() > last_moment, 60, "it is time to stop")

    def trains_again() -> bool:
        attempts = read_ledgers(run / "ledger")
        return len(attempts) > starts and attempts[-1].first_step is not None

    cluster.wait_until(trains_again, 300, f"{run.name} came back")


def wait_for_end(cluster: Cluster, run: Path, steps: int) -> None:
    """Wait until the run is finished with so many steps; it may have been finished with fewer."""
    wait_for_step(cluster, run, steps)
    wait_finished(cluster, run)


def settings(values: Mapping[str, object]) -> list[str]:
    """As flags of the command line."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def assert_preempted(run: Path, causes: list[str]) -> None:
    assert [attempt.cause for attempt in read_ledgers(run / "ledger")] == causes


def moved(world: TinyWorld, runs: Path) -> tuple[TinyWorld, Path]:
    """Move weights, data and runs to other folders."""
    elsewhere = TinyWorld(world.root.rename(world.root.with_name("elsewhere")))
    return elsewhere, runs.rename(runs.with_name("runs2"))


def test_a_longer_moved_run_equals_one_that_was_long_from_the_beginning(
    cluster: Cluster, world: TinyWorld, config: Path, runs_dir: Path
) -> None:
    run = runs_dir / "one"
    job = submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    preempted(cluster, run, EARLY)
    # While it trains, it is given more steps: its job goes on.
    more = ("--set", f"max_steps={2 * STEPS}", "--json")
    with standing_still(run):
        longer = mgpt4(cluster, runs_dir, "resume", "one", *more)
    assert json.loads(longer.stdout)["job_id"] == job
    wait_for_end(cluster, run, 2 * STEPS)
    cluster.wait_until(lambda: not cluster.squeue(), 120, "the job has ended")
    # Finished, it is given more again, while all its files are moved.
    old_weights = world.weights
    world, runs = moved(world, runs_dir)
    run, whole = runs / "one", runs / "whole"
    (seen,) = json.loads(mgpt4(cluster, runs, "status", "one", "--json").stdout)
    assert (seen["state"], seen["step"], seen["max_steps"]) == ("finished", 2 * STEPS, 2 * STEPS)
    last = {"max_steps": 3 * STEPS}
    lost = mgpt4(cluster, runs, "resume", "one", *settings(last), check=False)
    assert lost.returncode == 3 and str(old_weights) in lost.stderr
    data = {f"data.paths.{name}": world.shards(name) for name in ("laion", "cc_sbu")}
    places = settings({"model.weights": world.weights, **data})
    mgpt4(cluster, runs, "resume", "one", *settings(last), *places)
    preempted(cluster, run, 2 * STEPS + EARLY)
    wait_for_end(cluster, run, 3 * STEPS)

    from_the_start = settings({**last, "lr_steps": STEPS})
    config = write_config(world, config.parent)
    submit(cluster, runs, config, "whole", *from_the_start, ranks=1)
    wait_finished(cluster, whole)
    assert final_projector(run) == final_projector(whole)
    assert curve(run) == curve(whole)
    assert_every_step_once(run, 3 * STEPS)
    assert_preempted(run, ["preempted", "finished", "preempted", "finished"])
    noted = "\n".join(map(str, read_changes(run / "ledger")))
    for old in (STEPS, 2 * STEPS):
        assert f"train.max_steps was {old}, is {old + STEPS}" in noted
    assert f"model.weights was {old_weights}" not in noted, "the content is the same"


def test_a_branch_equals_its_parent_until_the_change(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    parent, same, other = (runs_dir / name for name in ("one", "same", "other"))
    submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    preempted(cluster, parent, EARLY)
    wait_finished(cluster, parent)
    before = read_ledgers(parent / "ledger")[0].last_step
    steps = sorted(int(path.name[5:]) for path in parent.glob("checkpoints/step-*"))
    step = next(step for step in steps if step > before)
    branch = ("submit", "--from", f"one@{step}", "--continue", "--name")
    mgpt4(cluster, runs_dir, *branch, "same")
    mgpt4(cluster, runs_dir, *branch, "other", "--set", "lr=0.001")
    preempted(cluster, same, step + EARLY)  # takes the nodes of both
    for run in (same, other):
        wait_finished(cluster, run)
        assert_every_step_once(run, STEPS)
    assert_preempted(same, ["preempted", "finished"])
    assert final_projector(same) == final_projector(parent)
    assert curve(same) == curve(parent)
    # The loss of a step is that of the weights before it: the first with the other rate keeps it.
    for tag, equal in (("train/lr", step), ("train/loss", step + 1)):
        changed, as_before = curve(other, tag), curve(parent, tag)
        assert changed[:equal] == as_before[:equal]
        assert not set(changed[equal:]) & set(as_before[equal:])


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_another_rate_from_a_step_on_is_the_same_in_the_run_and_in_a_branch(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    parent, branch = runs_dir / "one", runs_dir / "other"
    submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    preempted(cluster, parent, EARLY)
    wait_finished(cluster, parent)
    other = settings({"lr": 0.001, "max_steps": STEPS + 200})
    mgpt4(cluster, runs_dir, "submit", "--from", "one", "--continue", "--name", "other", *other)
    preempted(cluster, branch, STEPS + EARLY)
    wait_finished(cluster, branch)
    refused = mgpt4(cluster, runs_dir, "resume", "one", *other, check=False)
    assert refused.returncode == 2 and "--accept-drift" in refused.stderr
    mgpt4(cluster, runs_dir, "resume", "one", *other, "--accept-drift")
    preempted(cluster, parent, STEPS + EARLY)
    wait_for_end(cluster, parent, STEPS + 200)
    assert_preempted(parent, ["preempted", "finished", "preempted", "finished"])
    assert_preempted(branch, ["preempted", "finished"])
    assert final_projector(branch) == final_projector(parent)
    assert curve(branch) == curve(parent)
    for run in (parent, branch):
        assert_every_step_once(run, STEPS + 200)
        assert "train.lr was 0.01, is 0.001" in "\n".join(map(str, read_changes(run / "ledger")))
