"""A run of the code before its modules moved is resumed, preempted and finished by today's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import long_config, mgpt4, preempt, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once, last_step
from tests.support.stored_code import StoredCode
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 400


def test_a_stored_run_is_resumed_preempted_and_finished(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    older = StoredCode.unpack(tmp_path / "older")
    config = long_config(tiny_world, tmp_path / "one.yaml", steps=STEPS)
    runs = tmp_path / "runs"
    where = ["--gpus", "2", "--partition", "a100-preempt", "--name", "one"]
    older.run(
        "submit", "--config", config, *where, env={**cluster.env, "MGPT4_RUNS_DIR": str(runs)}
    )
    run = runs / "one"
    assert (run / "code" / "mgpt4_hpc" / "launch" / "ending.py").is_file(), "not the older code"
    wait_for_step(cluster, run, 20)
    mgpt4(cluster, runs, "cancel", "--save", "one")
    cluster.wait_until(lambda: not cluster.squeue(), 300, "the older job has saved and ended")

    mgpt4(cluster, runs, "resume", "one")
    cluster.wait_until(
        lambda: len(read_ledgers(run / "ledger")) == 2 and last_step(run) > stopped_at(run),
        300,
        "the resumed job trains",
    )
    preempt(cluster, run)
    wait_finished(cluster, run, timeout_s=300)

    causes = [attempt.cause for attempt in read_ledgers(run / "ledger")]
    assert causes == ["cancelled", "preempted", "finished"]
    assert_every_step_once(run, STEPS)
    assert not (run / "code" / "mgpt4_hpc" / "launch" / "job").exists(), "its own code ran"


def stopped_at(run: Path) -> int:
    """Step at which the first attempt ended."""
    return read_ledgers(run / "ledger")[0].last_step
