"""Ranks in a container, which sees neither the host's PATH nor Slurm's commands.

The container's runtime is a stand-in that takes Apptainer's options, hides what an image would
hide, and becomes the rank; what is real is Slurm, the signals and the batch script outside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, preempt_contained
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 150


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder for PATH, with an ``apptainer`` that notes its options."""
    inside = tmp_path / "inside"
    inside.mkdir()
    env = shutil.which("env")
    assert env is not None
    (inside / "env").symlink_to(env)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "apptainer"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/options\n'
        'while [ "${1##*.}" != sif ]; do shift; done\nshift\n'
        f'PATH={inside} exec "$@"\n'
    )
    script.chmod(0o755)
    return folder


def test_a_preempted_run_comes_back_from_within_a_container(
    cluster: Cluster, tiny_world: TinyWorld, runtime: Path, tmp_path: Path
) -> None:
    config = tiny_world.write_config(
        tmp_path / "c.yaml",
        train__max_steps=STEPS,
        train__global_batch_size=8,
        container={
            "runtime": "apptainer",
            "image": "/images/mgpt4.sif",
            "python": sys.executable,
            "mounts": [str(tiny_world.root)],
        },
    )
    search_path = f"{runtime}{os.pathsep}{cluster.env['PATH']}"
    run = preempt_contained(cluster, search_path, config, tmp_path / "runs", STEPS)
    options = (tmp_path / "options").read_text().splitlines()[0]
    assert f"exec --bind {run.parent} --bind {tiny_world.root} /images/mgpt4.sif" in options


def test_a_runtime_that_the_nodes_lack_is_what_status_tells(
    cluster: Cluster, tiny_world: TinyWorld, runs_dir: Path, tmp_path: Path
) -> None:
    image = tmp_path / "mgpt4.sif"
    container = {"runtime": "singularity", "image": str(image), "python": sys.executable}
    config = tiny_world.write_config(
        tmp_path / "c.yaml", container=container, launch__max_stalled_attempts=1
    )
    asked = ("submit", "--config", str(config), "--name", "one")
    refused = mgpt4(cluster, runs_dir, *asked, check=False)
    assert refused.returncode == 3 and f"container.image {image} does not exist" in refused.stderr
    image.touch()
    assert "singularity is not in PATH here" in mgpt4(cluster, runs_dir, *asked).stderr
    cluster.wait_until((runs_dir / "one" / "FAILED").exists, 120, "it was given up")
    cluster.wait_until(lambda: not cluster.squeue(), 60, "its job has ended")
    (seen,) = json.loads(mgpt4(cluster, runs_dir, "status", "one", "--json").stdout)
    assert seen["state"] == "failed"
    assert seen["text"].endswith("singularity: No such file or directory")
    assert seen["details"] == [
        "1 attempt in a row made no checkpoint (launch.max_stalled_attempts)"
    ]
