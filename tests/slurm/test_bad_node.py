"""A node with a broken scratch: the job leaves it, and finishes elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, wait_finished
from tests.support.runs import log
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm


def test_a_run_leaves_a_node_with_a_broken_scratch_and_finishes_elsewhere(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    # Of four nodes only node1 and node2 are allowed, and node1 is tried first. Its TMPDIR is a
    # folder that takes no files; a missing one is made by Slurm itself, or replaced by /tmp.
    config = tiny_world.write_config(
        tmp_path / "one.yaml",
        train__max_steps=4,
        launch__gpus=2,
        launch__exclude="node[3-4]",
        launch__setup=['[ "$SLURMD_NODENAME" != node1 ] || export TMPDIR=/proc'],
    )
    runs = tmp_path / "runs"
    done = mgpt4(cluster, runs, "submit", "--config", str(config), "--name", "left", "--json")
    job = json.loads(done.stdout)[0]["job_id"]
    run = runs / "left"
    wait_finished(cluster, run)

    first, second = read_ledgers(run / "ledger")
    assert (first.cause, first.exit_code, first.nodes) == ("bad node", 71, ["node1"])
    (fault,) = first.faults
    assert fault["node"] == "node1" and "TMPDIR /proc cannot be written" in fault["reason"]
    assert (second.cause, second.nodes) == ("finished", ["node2"])
    hosts = cluster.run(["scontrol", "show", "hostnames", cluster.job(job)["ExcNodeList"]]).stdout
    assert sorted(hosts.split()) == ["node1", "node3", "node4"]
    assert "excluded node1" in log(run)
    history = mgpt4(cluster, runs, "history", "left").stdout
    assert "attempt 1: bad node node1: TMPDIR /proc cannot be written" in history
