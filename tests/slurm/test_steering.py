"""The daily commands on a real Slurm: look, follow, cancel with a save, resume, look back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.harness import Cluster
from tests.slurm.jobs import (
    MAX_STEPS,
    mgpt4,
    preempt,
    submit,
    wait_finished,
    wait_for_step,
)
from tests.support.runs import assert_every_step_once, patience
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def config(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    return tiny_world.write_config(
        path, train__max_steps=MAX_STEPS, train__global_batch_size=16, train__micro_batch_size=4
    )


def status(cluster: Cluster, runs: Path) -> dict[str, Any]:
    return json.loads(mgpt4(cluster, runs, "status", "--json").stdout)[0]


def test_cancel_with_a_save_resume_on_fewer_gpus_and_be_preempted(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    runs, run = tmp_path, tmp_path / "one"
    job = submit(cluster, runs, config, "one", "--partition", "a100-preempt")
    wait_for_step(cluster, run, 10)
    seen = status(cluster, runs)
    assert (seen["state"], seen["source"], seen["job_id"]) == ("running", "squeue", job)
    assert seen["nodes"].startswith("node[")
    refused = mgpt4(cluster, runs, "resume", "one", check=False)
    assert refused.returncode == 7

    mgpt4(cluster, runs, "cancel", "one", "--save")
    cluster.wait_until(lambda: status(cluster, runs)["state"] == "cancelled", 60, "cancelled")
    seen = status(cluster, runs)
    assert seen["checkpoint_step"] == seen["step"] >= 10
    assert cluster.squeue().get(job, "FAILED") not in ("PENDING", "RUNNING")

    mgpt4(cluster, runs, "resume", "one", "--gpus", "1", "--nodes", "1")
    follower = subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "logs", "-f", "one"],
        env={**cluster.env, "MGPT4_RUNS_DIR": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_step(cluster, run, seen["step"] + 10)
        # Until it is seen waiting: each look takes seconds where the machine is busy.
        urgent = preempt(cluster, run, seconds=600)
        requeued = re.compile(r"preempted, requeued, (eligible in \d+ s|pending \(\w+\))")
        cluster.wait_until(
            lambda: requeued.fullmatch(status(cluster, runs)["text"]), 60, "seen as requeued"
        )
        cluster.run(["scancel", urgent])
        wait_finished(cluster, run)
        followed, said = follower.communicate(timeout=60 * patience())
    finally:
        follower.kill()
    assert follower.returncode == 0
    assert "one: finished" in said
    marks = re.findall(r"=== one: attempt (\d), rank 0 of (\d)", followed)
    assert marks == [("2", "1"), ("3", "1")]

    told = json.loads(mgpt4(cluster, runs, "history", "one", "--json").stdout)
    assert [a["cause"] for a in told["attempts"]] == ["cancelled", "preempted", "finished"]
    assert [a["steps_replayed"] for a in told["attempts"]] == [0, 0, 0]
    assert status(cluster, runs)["text"] == "finished"
    assert "finished already" in mgpt4(cluster, runs, "resume", "one").stdout
    assert_every_step_once(run, MAX_STEPS)


def test_one_is_cancelled_in_the_queue(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    submit(cluster, tmp_path, config, "one", "--sbatch", "begin=now+600")
    seen = status(cluster, tmp_path)
    assert seen["state"] == "pending"
    assert re.fullmatch(r"eligible in \d+ min", seen["text"])
    mgpt4(cluster, tmp_path, "cancel", "one")
    seen = status(cluster, tmp_path)
    assert (seen["state"], seen["source"]) == ("cancelled", "squeue")


def test_nobody_answers(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Exit 5 and a sentence; what the folder knows is shown nevertheless."""
    submit(cluster, tmp_path, config, "one", "--sbatch", "begin=now+600")
    mute = tmp_path / "bin"
    mute.mkdir()
    for name in ("squeue", "sacct", "scancel", "scontrol"):
        told = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        (mute / name).write_text(f"#!/bin/sh\necho '{name}: {told}' >&2\nexit 1\n")
        (mute / name).chmod(0o755)
    environment = {**cluster.env, "PATH": f"{mute}:{os.environ['PATH']}"}
    for words in (["status", "one"], ["cancel", "one"], ["resume", "one"]):
        done = subprocess.run(
            [sys.executable, "-m", "mgpt4_hpc.cli.main", *words, "--runs-dir", str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120 * patience(),
            check=False,
        )
        assert done.returncode == 5, (words, done.stderr)
        assert "Unable to contact slurm controller" in done.stderr
        assert "Traceback" not in done.stderr
