"""The batch script on a real Slurm that signals the script itself; a shell stands in for a rank."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.stored import write_config
from mgpt4_hpc.launch.submit import render
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster

pytestmark = pytest.mark.slurm

RANK = """\
trap 'told=yes' TERM
echo the rank is ready
while [ -z "$told" ]; do sleep 0.1; done
echo the rank saves
sleep 1
exit 75
"""


def test_the_supervisor_decides_though_the_script_was_signalled_too(
    cluster: Cluster, tmp_path: Path
) -> None:
    # As at a preemption without grace, where every process of the job gets TERM: a shell without
    # a trap dies of it, and nobody is left who would decide.
    run = RunDir(tmp_path / "a run")
    run.create({"name": "one"})
    settings = {"launch.gpus": 1, "launch.cpus_per_gpu": 1, "launch.time_min": 5}
    resolved = load_config("stage1-vicuna7b", overrides=settings)
    write_config(run.config_file, resolved)
    rank = tmp_path / "rank.sh"
    rank.write_text(RANK)
    script, replaced = re.subn(
        r"^srun .*$", f"srun bash {rank}", render(run, resolved, None), flags=re.MULTILINE
    )
    assert replaced == 1
    told = tmp_path / "told"
    job = cluster.sbatch(script, f"--output={told}")

    def says(text: str) -> bool:
        return told.exists() and text in told.read_text()

    cluster.wait_until(lambda: says("the rank is ready"), 60, "the rank runs")
    cluster.run(["scancel", "--full", "--signal=TERM", job])
    cluster.wait_until(lambda: says("supervisor: srun ended with"), 60, "the supervisor spoke")
    assert "goes on from its last checkpoint" in told.read_text()
    assert len(read_ledgers(run.ledger)) == 1
    assert cluster.job(job)["Restarts"] == "1"
