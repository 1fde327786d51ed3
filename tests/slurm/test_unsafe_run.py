"""A run folder that others can write, under a name that a shell could take amiss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, wait_finished
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


def test_nothing_of_a_folder_that_others_can_write_is_run_and_nothing_in_its_name(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=4)
    runs = tmp_path / 'it\'s $(touch pwned) `touch pwned` "x" ; touch pwned'
    done = mgpt4(
        cluster, runs, "submit", "--config", str(config), "--name", "open", "--json",
        "--sbatch", "begin=now+1hour", "--sbatch", "comment=$(touch pwned)`id`",
    )  # fmt: skip
    (job,) = (entry["job_id"] for entry in json.loads(done.stdout))
    run = runs / "open"
    canary = tmp_path / "unpickled"
    # A launcher that somebody else might have put there.
    launcher = (run / "slurm" / "python").read_text()
    (run / "slurm" / "python").write_text(f"#!/bin/sh\ntouch {canary}\n")
    run.chmod(0o777)
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    ended = cluster.wait_for_state(job, "FAILED", timeout_s=60)
    assert ended["ExitCode"] == "70:0"
    output = (run / "slurm" / f"{job}_0_log.out").read_text()
    assert "others may write or own this, so nothing of it is run" in output
    assert not canary.exists()

    refused = mgpt4(cluster, runs, "resume", "open", check=False)
    assert refused.returncode == 7 and "chmod -R go-w" in refused.stderr
    run.chmod(0o700)
    (run / "slurm" / "python").write_text(launcher)
    assert (
        "open" in mgpt4(cluster, runs, "resume", "open", "--set", "launch.sbatch.begin=now").stdout
    )
    wait_finished(cluster, run)
    assert not list(tmp_path.rglob("pwned"))
