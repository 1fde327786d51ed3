"""``mgpt4 eval --slurm``: preempted and killed, it ends with the scores of one left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.evaluation.benchmarks import LMMS_EVAL
from mgpt4_hpc.run_dir import RunDir
from tests.slurm.harness import Cluster
from tests.slurm.jobs import preempt
from tests.support.lmms_eval import stand_in
from tests.support.runs import patience
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

# Each start imports torch.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

BATCH = 4


def begin(cluster: Cluster, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "eval", *map(str, arguments)],
        env={**cluster.env, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 900) -> dict:
    out, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    return json.loads(out)


def processes(run: RunDir) -> dict[str, int]:
    """Number of each part to the process that answers it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = path.read_bytes().decode().split("\0")
            if "--part" in words and str(run.path) in words:
                found[words[words.index("--part") + 1].partition("/")[0]] = int(path.parent.name)
    return found


@pytest.mark.parametrize(
    ("blows", "images", "gpus"),
    [
        (("kill",), 32, 2),
        pytest.param(("preempt", "kill", "preempt", "preempt"), 100, 1, marks=pytest.mark.soak),
    ],
)
def test_what_ends_it_costs_no_answer_that_is_written(
    blows: tuple[str, ...],
    images: int,
    gpus: int,
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
    slurm = ("--slurm", "--partition", "a100-preempt", "--time", 10, "--gpus", gpus)
    job = begin(cluster, *asked, *slurm)

    def answers() -> list[tuple[str, str]]:
        return [
            (row["task"], row["image"])
            for path in run.path.glob("evaluations/*/*.jsonl")
            for line in path.read_text().rpartition("\n")[0].splitlines()
            if (row := json.loads(line or "{}"))
        ]

    def restarts(part: str) -> int:
        for pid in processes(run).values() if blow == "preempt" else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # or it finishes in its grace time
        return int(cluster.job(f"{array_id}_{part}")["Restarts"])

    def begun(part: str) -> bool:
        """Ask for a start now; on a busy machine the part has begun, or even ended, before."""
        task = f"{array_id}_{part}"
        cluster.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], check=False)
        return cluster.job(task)["JobState"] != "PENDING"

    for number, blow in enumerate(blows, 1):
        before = len(answers())
        cluster.wait_until(lambda n=before: len(answers()) > n, 300, "further answers")
        (submitted,) = run.path.glob("evaluations/*/array.json")
        array_id = json.loads(submitted.read_text())["job_id"]
        part, pid = next(iter(processes(run).items()))
        if blow == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            preempt(cluster)
        cluster.wait_until(lambda p=part, n=number: restarts(p) == n, 120, f"restart {number}")
        cluster.wait_until(
            lambda task=f"{array_id}_{part}": cluster.job(task)["JobState"] != "COMPLETING",
            60,
            "its last start has ended",
        )
        again = begin(cluster, *asked, *slurm, "--no-wait")
        _, errors = again.communicate(timeout=300 * patience())
        assert again.returncode == 0, errors
        assert json.loads(submitted.read_text())["job_id"] == array_id, "a second array"
        cluster.wait_until(lambda p=part: begun(p), 60, "the part begins")
    told = finish(job)
    cluster.wait_until(lambda: not cluster.squeue(), 300, "the job behind the array has ended")
    assert len(set(answers())) == 2 * images >= len(answers()) - BATCH
    assert told == finish(begin(cluster, *asked))


@pytest.mark.soak
def test_benchmarks_as_a_job(cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path) -> None:
    run = make_trained_run(tiny_world, tmp_path / "two")
    variables = {LMMS_EVAL.variable: str(stand_in(tmp_path / "environment"))}
    asked = (run.path, "--tasks", "pope,mme", "--device", "cpu", "--json")
    here = finish(begin(cluster, *asked, **variables))
    assert [task["task"] for task in here["tasks"]] == ["pope", "mme"]
    shutil.rmtree(run.path / "evaluations")
    slurm = ("--slurm", "--partition", "a100", "--time", 10)
    assert finish(begin(cluster, *asked, *slurm, **variables)) == here
