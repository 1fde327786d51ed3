"""``--slurm``: a conversation and an evaluation on a node of a real Slurm, through srun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.harness import Cluster
from tests.support.runs import patience
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

pytestmark = pytest.mark.slurm

ON_NODE = ("--slurm", "--gpus", "1", "--time", "5", "--partition", "a100", "--device", "cpu")


def on_node(cluster: Cluster, *arguments: object, typed: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, arguments), *ON_NODE],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120 * patience(),
        env={**cluster.env, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_talking_and_measuring_on_a_node(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = make_trained_run(tiny_world, tmp_path / "two")
    image = tiny_world.align / "image" / "0.jpg"
    told = on_node(
        cluster, "chat", image, "--checkpoint", run.path, "--max-new-tokens", 5,
        typed="What is this?\n/history\n",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) == 1 and "> What is this?" in told.stderr

    measured = on_node(
        cluster, "eval", run.path, "--images", image.parent, "--limit", 2, "--max-new-tokens", 5,
        "--json",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["tasks"][0]["num_images"] == 2

    refused = on_node(cluster, "eval", run.path, "--images", tmp_path / "none")
    assert refused.returncode == 1 and "none" in refused.stderr
