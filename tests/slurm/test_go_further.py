"""A run is made longer, branched off and moved, preempted before and after, and keeps its bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_changes, read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, pid_of_rank, preempt, submit, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once, curve, final_projector, last_step
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 300
EARLY = 20
PREEMPTIBLE = ("--partition", "a100-preempt")


@pytest.fixture
def config(tiny_world: TinyWorld, tmp_path: Path) -> Path:
    return tiny_world.write_config(
        tmp_path / "one.yaml",
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


def preempted(cluster: Cluster, run: Path, step: int) -> None:
    """Take the run's node once it is at ``step``, and wait until it trains again."""
    wait_for_step(cluster, run, step)
    starts = len(read_ledgers(run / "ledger"))
    # It must not finish before Slurm comes, whose CONT at a preemption wakes it.
    os.kill(pid_of_rank(run, 0), signal.SIGSTOP)
    preempt(cluster)

    def trains_again() -> bool:
        attempts = read_ledgers(run / "ledger")
        return len(attempts) > starts and attempts[-1].first_step is not None

    cluster.wait_until(trains_again, 300, f"{run.name} came back")


def wait_for_end(cluster: Cluster, run: Path, steps: int) -> None:
    """Wait until the run is finished with so many steps; it may have been finished with fewer."""
    wait_for_step(cluster, run, steps)
    wait_finished(cluster, run)


def assert_preempted(run: Path, causes: list[str]) -> None:
    assert [attempt.cause for attempt in read_ledgers(run / "ledger")] == causes


def test_a_longer_run_equals_one_that_was_long_from_the_beginning(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    run, whole = runs_dir / "one", runs_dir / "whole"
    job = submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    preempted(cluster, run, EARLY)
    # While it trains, it is given more steps: its job goes on.
    more = ("--set", f"max_steps={2 * STEPS}", "--json")
    with standing_still(run):
        longer = mgpt4(cluster, runs_dir, "resume", "one", *more)
    assert json.loads(longer.stdout)["job_id"] == job
    wait_for_end(cluster, run, 2 * STEPS)
    # Finished, it is given more again.
    (seen,) = json.loads(mgpt4(cluster, runs_dir, "status", "one", "--json").stdout)
    assert (seen["state"], seen["step"], seen["max_steps"]) == ("finished", 2 * STEPS, 2 * STEPS)
    mgpt4(cluster, runs_dir, "resume", "one", "--set", f"max_steps={3 * STEPS}")
    preempted(cluster, run, 2 * STEPS + EARLY)
    wait_for_end(cluster, run, 3 * STEPS)

    from_the_start = ("--set", f"max_steps={3 * STEPS}", "--set", f"lr_steps={STEPS}")
    submit(cluster, runs_dir, config, "whole", *from_the_start, ranks=1)
    wait_finished(cluster, whole)
    assert final_projector(run) == final_projector(whole)
    assert curve(run) == curve(whole)
    assert_every_step_once(run, 3 * STEPS)
    assert_preempted(run, ["preempted", "finished", "preempted", "finished"])
    noted = "\n".join(map(str, read_changes(run / "ledger")))
    for old in (STEPS, 2 * STEPS):
        assert f"train.max_steps was {old}, is {old + STEPS}" in noted


def test_a_branch_equals_its_parent_until_the_change(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    parent = runs_dir / "one"
    submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    preempted(cluster, parent, EARLY)
    wait_finished(cluster, parent)
    step = sorted(int(p.name[5:]) for p in parent.glob("checkpoints/step-*"))[0]
    same = ("--from", f"one@{step}", "--continue", "--name", "same")
    mgpt4(cluster, runs_dir, "submit", *same)
    preempted(cluster, runs_dir / "same", step + EARLY)
    wait_finished(cluster, runs_dir / "same")
    assert final_projector(runs_dir / "same") == final_projector(parent)
    assert curve(runs_dir / "same") == curve(parent)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_another_rate_from_a_step_on_is_the_same_in_the_run_and_in_a_branch(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    parent = runs_dir / "one"
    submit(cluster, runs_dir, config, "one", *PREEMPTIBLE, ranks=1)
    wait_finished(cluster, parent)
    other = ("--set", "lr=0.001", "--set", f"max_steps={STEPS + 100}")
    mgpt4(cluster, runs_dir, "submit", "--from", "one", "--continue", "--name", "other", *other)
    preempted(cluster, runs_dir / "other", STEPS + EARLY)
    wait_finished(cluster, runs_dir / "other")
    refused = mgpt4(cluster, runs_dir, "resume", "one", *other, check=False)
    assert refused.returncode == 2 and "--accept-drift" in refused.stderr
    mgpt4(cluster, runs_dir, "resume", "one", *other, "--accept-drift")
    wait_for_end(cluster, parent, STEPS + 100)
    assert final_projector(runs_dir / "other") == final_projector(parent)
    assert curve(runs_dir / "other") == curve(parent)
    for run in (parent, runs_dir / "other"):
        assert "train.lr was 0.01, is 0.001" in "\n".join(map(str, read_changes(run / "ledger")))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_whose_files_have_moved_keeps_its_bits(
    cluster: Cluster, tiny_world: TinyWorld, config: Path, tmp_path: Path
) -> None:
    runs, new_runs = tmp_path / "runs", tmp_path / "runs2"
    world = TinyWorld(tmp_path / "world")
    shutil.copytree(tiny_world.root, world.root)
    submit(cluster, runs, config, "first", ranks=1)
    second = world.write_config(
        tmp_path / "two.yaml", 2, train__max_steps=2 * STEPS, train__save_every_s=1
    )
    after = ("--after", "first", "--set", f"model.weights={world.weights}")
    wait_finished(cluster, runs / "first")
    for name in ("whole", "two"):
        submit(cluster, runs, second, name, *after, *PREEMPTIBLE, ranks=1)
        if name == "whole":
            wait_finished(cluster, runs / name)
    preempted(cluster, runs / "two", EARLY)
    mgpt4(cluster, runs, "cancel", "two", "--save")
    cluster.wait_until(lambda: not cluster.squeue(), 120, "the job has saved and ended")

    moved = TinyWorld(tmp_path / "elsewhere")
    world.root.rename(moved.root)
    runs.rename(new_runs)
    shutil.rmtree(new_runs / "first")  # it started there, and has a checkpoint of its own
    lost = mgpt4(cluster, new_runs, "resume", "two", check=False)
    assert lost.returncode == 3 and str(world.weights) in lost.stderr
    where = (
        "--set",
        f"model.weights={moved.weights}",
        "--set",
        f"data.paths.cc_sbu_align={moved.align}",
    )
    mgpt4(cluster, new_runs, "resume", "two", *where)
    preempted(cluster, new_runs / "two", last_step(new_runs / "two") + EARLY)
    wait_finished(cluster, new_runs / "two")
    assert final_projector(new_runs / "two") == final_projector(new_runs / "whole")
    assert_every_step_once(new_runs / "two", 2 * STEPS)
