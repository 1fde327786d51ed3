"""The batch scripts in ``slurm/``: submitted by hand, preempted, finished."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import MAX_STEPS, preempt, wait_finished, wait_for_step
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
    preempt(cluster, run)
    wait_finished(cluster, run)

    assert [a.cause for a in read_ledgers(run / "ledger")] == ["preempted", "finished"]
    assert_every_step_once(run, MAX_STEPS)


def test_index_sbatch_does_parts_as_an_array_and_puts_them_together(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    shards = tmp_path / "it's $(touch pwned) shards"
    shards.symlink_to(tiny_world.shards("laion"))
    index = tmp_path / "laion with a space.index"

    def submit(*options: str) -> str:
        done = cluster.run(
            [
                *("sbatch", "--parsable", f"--output={tmp_path}/log-%j", *options),
                *(f"--export=ALL,MGPT4_PYTHON={sys.executable}", f"--chdir={tmp_path}"),
                *(str(REPO / "slurm" / "index.sbatch"), str(shards), "--out", str(index)),
            ]
        )
        return done.stdout.strip()

    array = submit("--array=1-2")
    merging = submit(f"--dependency=afterok:{array}")
    cluster.wait_for_state(merging, "COMPLETED", timeout_s=60)
    alone, _ = build_index(sorted(shards.glob("*.tar")), tmp_path / "alone.index")
    assert ShardIndex.open(index).num_samples == alone.num_samples > 0
    assert not list(tmp_path.glob("pwned"))


@pytest.mark.parametrize("name", ["stage1", "stage2", "index", "download", "tensorboard"])
def test_slurm_takes_each(cluster: Cluster, name: str) -> None:
    template = str(REPO / "slurm" / f"{name}.sbatch")
    done = cluster.run(["sbatch", "--test-only", "--partition=a100", template, "/runs/x"])
    assert "to start at" in done.stderr
