"""TensorBoard as a job: its server answers, its line is printed, and scancel ends it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.cli.synthetic import attempt, make_run
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4

pytestmark = pytest.mark.slurm

HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine itself, also where the environment names a proxy."""


def test_it_starts_prints_the_line_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs with 100%j"
    run = make_run(runs)
    attempt(run, 1, first=1, last=5, cause="finished")
    done = mgpt4(
        cluster, runs, "tensorboard", "one", "--slurm", "--json", "--sbatch", "comment=curves"
    )
    told = json.loads(done.stdout)
    assert cluster.squeue() == {told["job_id"]: "RUNNING"}
    assert told["runs"] == ["one"]
    # Its nodes are this machine, so the server can be asked without a tunnel.
    with HERE.open(f"http://127.0.0.1:{told['port']}/data/environment") as answer:
        assert json.load(answer)["window_title"] == "mgpt4"
    mgpt4(cluster, runs, "ls")  # its log's folder is no run
    cluster.run(["scancel", told["job_id"]])
    cluster.wait_until(lambda: not _listens(told["port"]), 30, "the server ended with its job")


def _listens(port: int) -> bool:
    try:
        with HERE.open(f"http://127.0.0.1:{port}/", timeout=2):
            return True
    except OSError:
        return False


def test_a_job_that_cannot_start_its_server_is_told(cluster: Cluster, tmp_path: Path) -> None:
    make_run(tmp_path)
    done = mgpt4(cluster, tmp_path, "tensorboard", "--slurm", "--host", "192.0.2.1", check=False)
    assert done.returncode == 1
    assert "ended before TensorBoard was up" in done.stderr
    assert "192.0.2.1" in done.stderr
