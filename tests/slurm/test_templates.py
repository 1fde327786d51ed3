"""The batch scripts in ``slurm/``: submitted by hand, preempted, finished."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.test_main_job import MAX_STEPS, preempt, wait_finished, wait_for_step
from tests.support.runs import REPO, assert_every_step_once
from tests.support.tiny_world import REFERENCE, TinyWorld

pytestmark = pytest.mark.slurm


def test_stage2_sbatch_survives_a_preemption(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "two.yaml", stage=2, train__max_steps=MAX_STEPS)
    run = tmp_path / "run with a space"
    cluster.run(
        [
            "sbatch",
            "--parsable",
            "--partition=a100-preempt",
            "--cpus-per-task=1",
            f"--output={tmp_path}/batch-%j.log",
            f"--export=ALL,CONFIG={config},MGPT4_PYTHON={sys.executable},OMP_NUM_THREADS=1",
            str(REPO / "slurm" / "stage2.sbatch"),
            str(run),
            "--set",
            f"model.projector={REFERENCE / 'pretrained_minigpt4.pth'}",
        ]
    )
    wait_for_step(cluster, run, 10)
    preempt(cluster)
    wait_finished(cluster, run)

    assert [a.cause for a in read_ledgers(run / "ledger")] == ["preempted", "finished"]
    assert_every_step_once(run, MAX_STEPS)
