"""The batch script on a real Slurm that signals the script itself; a shell stands in for a rank."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.submit.submit_run import render
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


@pytest.mark.parametrize("export", ["NONE", "MGPT4_PYTHON=/x"])
def test_what_the_script_exports_reaches_the_tasks_whatever_sbatch_exports(
    cluster: Cluster, tmp_path: Path, export: str
) -> None:
    run = RunDir(tmp_path / "a run")
    run.create({"name": "one"})
    settings = {
        "launch.gpus": 1,
        "launch.cpus_per_gpu": 1,
        "launch.time_min": 5,
        "launch.env.NCCL_DEBUG": "WARN",
        "launch.sbatch.export": export,
    }
    resolved = load_config("stage1-vicuna7b", overrides=settings)
    write_config(run.config_file, resolved)
    seen = tmp_path / "seen"
    # The task tells its environment in the trainer's place; srun's own options stay.
    (run.slurm / "python").write_text(f"env > '{seen}'\nexit 70\n")
    job = cluster.sbatch(render(run, resolved, None), f"--output={tmp_path}/told")
    cluster.wait_until(lambda: job not in cluster.squeue(), 60, "the job has ended")
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert found["NCCL_DEBUG"] == "WARN"
    assert found["PYTHONPATH"].startswith(str(run.code)) and found["PYTHONSAFEPATH"] == "1"
    assert found["MGPT4_MASTER_ADDR"]
