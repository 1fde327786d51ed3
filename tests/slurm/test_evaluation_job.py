"""``mgpt4 eval --slurm``: preempted and killed, it ends with the scores of one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.run_dir import RunDir
from tests.slurm.harness import Cluster
from tests.slurm.jobs import preempt
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

# Each start imports torch: minutes.
pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1800)]

BATCH = 4


def begin(cluster: Cluster, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "eval", *map(str, arguments)],
        env={**cluster.env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 900) -> dict:
    out, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    return json.loads(out)


def signal_part(run: RunDir, number: signal.Signals) -> bool:
    """Signal the process that answers; whether there is one."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = path.read_bytes().decode().split("\0")
            if "--part" in words and str(run.path) in words:
                os.kill(int(path.parent.name), number)
                return True
    return False


@pytest.mark.parametrize(
    ("blows", "images"),
    [
        (("preempt", "kill", "preempt", "preempt"), 100),
    ],
)
def test_what_ends_it_costs_no_answer_that_is_written(
    blows: tuple[str, ...],
    images: int,
    cluster: Cluster,
    tiny_world: TinyWorld,
    tmp_path: Path,
) -> None:
    run, pictures = make_trained_run(tiny_world, tmp_path / "two"), tmp_path / "pictures"
    pictures.mkdir()
    for number in range(images):
        Image.new("RGB", (24, 24), (number, 255 - number, 90)).save(pictures / f"{number:03}.png")
    asked = (run.path, "--images", pictures, "--batch-size", BATCH, "--max-new-tokens", 90,
             "--device", "cpu", "--json")  # fmt: skip
    alone = begin(cluster, *asked)
    job = begin(cluster, *asked, "--slurm", "--partition", "a100-preempt", "--time", 10)

    def answers() -> list[tuple[str, str]]:
        return [
            (row["task"], row["image"])
            for path in run.path.glob("evaluations/*/*.jsonl")
            for line in path.read_text().rpartition("\n")[0].splitlines()
            if (row := json.loads(line or "{}"))
        ]

    def restarts() -> int:
        signal_part(run, signal.SIGSTOP)  # or it finishes in its grace time
        return int(cluster.job(job_id)["Restarts"])

    for number, blow in enumerate(blows):
        before = len(answers())
        cluster.wait_until(lambda n=before: len(answers()) > n, 120, "further answers")
        if not number:
            (job_id,) = cluster.squeue()
        if blow == "kill":
            assert signal_part(run, signal.SIGKILL)
        else:
            preempt(cluster)
        cluster.wait_until(lambda n=number: restarts() == n + 1, 90, f"restart {number + 1}")
        cluster.wait_for_state(job_id, "PENDING", timeout_s=60)  # its last start has ended
        now = ["scontrol", "update", f"JobId={job_id}", "StartTime=now"]
        cluster.wait_until(lambda now=now: not cluster.run(now, check=False).returncode, 60, "now")
    told = finish(job)
    assert len(set(answers())) == 2 * images > len(answers()) - BATCH
    assert told == finish(alone)
