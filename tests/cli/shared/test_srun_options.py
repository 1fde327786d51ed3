"""A command that starts itself on a node of the cluster."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.launch.slurm.srun import srun_command
from tests.cli.fakes import Mgpt4


def test_on_a_node_of_a_cluster_that_does_not_answer(
    mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("scontrol", "srun"):
        command = tmp_path / name
        command.write_text(
            "#!/bin/sh\necho 'Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["mgpt4", "chat", "--slurm"])
    ended = mgpt4("chat", "--slurm")
    assert ended.code == 5 and "cannot reach Slurm: Unable to contact" in ended.err


def test_on_a_node_it_starts_itself(monkeypatch: pytest.MonkeyPatch, mgpt4: Mgpt4) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.srun.become", started.append)
    words = [
        "chat", "a b.jpg", "--checkpoint", "two", "--slurm", "--partition", "a100", "--time=30",
        "--srun", "--qos=short", "--temperature", "1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mgpt4", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert mgpt4(*words).code == 0
    assert started == [
        [
            "srun", "--ntasks=1", "--cpus-per-task=4", "--time=30", "--gres=gpu:1",
            "--partition=a100", "--qos=short", sys.executable, "-P", "-m", "mgpt4_hpc.cli.main",
            "chat", "a b.jpg", "--checkpoint", "two", "--temperature", "1",
        ]
    ]  # fmt: skip
    assert "--pty" in srun_command([])
