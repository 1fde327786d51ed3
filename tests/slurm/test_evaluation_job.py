"""``mgpt4 eval --slurm``: preempted and killed, it ends with the scores of one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.run_dir import RunDir
from tests.slurm.harness import Cluster
from tests.slurm.jobs import preempt
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

pytestmark = pytest.mark.slurm

IMAGES, BATCH = 100, 4


def begin(cluster: Cluster, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "eval", *map(str, arguments)],
        env={**cluster.env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> dict:
    out, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    return json.loads(out)


def pid_of_part(run: RunDir) -> int:
    """The process that answers."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if "--part" in words and str(run.path) in words:
            return int(path.parent.name)
    raise AssertionError(f"nothing answers for {run.path}")


def test_preempted_three_times_and_killed_once(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run, pictures = make_trained_run(tiny_world, tmp_path / "two"), tmp_path / "pictures"
    pictures.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (24, 24), (number, 255 - number, 90)).save(pictures / f"{number:03}.png")
    asked = (run.path, "--images", pictures, "--batch-size", BATCH, "--max-new-tokens", 90,
             "--device", "cpu", "--json")  # fmt: skip
    alone = begin(cluster, *asked)
    job = begin(cluster, *asked, "--slurm", "--partition", "a100-preempt", "--time", 10)

    def lines() -> list[dict]:
        return [json.loads(line) for path in run.path.glob("evaluations/*/*.jsonl")
                for line in path.read_text().split("\n")[:-1] if line]  # fmt: skip

    def more_than(number: int) -> None:
        cluster.wait_until(lambda: len(lines()) > number, 120, f"more than {number} answers")

    def restarts() -> int:
        return int(cluster.job(job_id).get("Restarts", 0))

    more_than(0)
    (job_id,) = cluster.squeue()
    for times in range(4):
        more_than(len(lines()))
        if times == 1:
            os.kill(pid_of_part(run), signal.SIGKILL)
        else:
            preempt(cluster)
        cluster.wait_until(lambda n=times: restarts() == n + 1, 90, f"restart {times + 1}")
    told = finish(job)
    rows = lines()
    assert len(rows) == 2 * IMAGES == len({(row["task"], row["image"]) for row in rows})
    assert told == finish(alone)
