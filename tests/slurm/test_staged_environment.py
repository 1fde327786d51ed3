"""``launch.stage_env``: the same bits from a node's disk, whatever happens while it is filled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import (
    long_config,
    mgpt4,
    pid_of_rank,
    preempt,
    submit,
    wait_finished,
    wait_for_checkpoints,
)
from tests.support.runs import assert_every_step_once, final_projector
from tests.support.tiny_world import TinyWorld

pytestmark = [pytest.mark.slurm, pytest.mark.soak]  # each of four starts imports torch: minutes

STEPS = 100


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A venv that has this one's packages, and is packed in seconds; ``mgpt4`` runs from it."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    packages.joinpath("shared.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    return folder


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has space, as df sees it, and takes twenty files."""
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=20", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class SlowTar:
    """A ``tar`` that unpacks, then waits as long as the gate is there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.gate, self.unpacker = folder / "gate", folder / "unpacker"
        self.gate.touch()
        program = folder / "tar"
        program.write_text(
            f'#!/bin/sh\n/bin/tar "$@" || exit\necho $PPID > {self.unpacker}.new '
            f"&& mv {self.unpacker}.new {self.unpacker}\n"
            f"while [ -e {self.gate} ]; do sleep 0.1; done\n"
        )
        program.chmod(0o755)
        self.setup = f"launch.setup=['PATH={folder}:$PATH']"


def logs(run: Path) -> str:
    """What all tasks wrote."""
    return "\n".join(path.read_text() for path in (run / "slurm").glob("*_log.out"))


def interpreter(run: Path) -> str:
    """The Python that rank 0 was started with."""
    return Path(f"/proc/{pid_of_rank(run, 0)}/cmdline").read_text().split("\0")[0]


def test_a_staged_environment_changes_no_bit_and_is_whole_or_not_used(
    cluster: Cluster,
    tiny_world: TinyWorld,
    runs_dir: Path,
    tmp_path: Path,
    environment: Path,
    full_disk: Path,
) -> None:
    config = long_config(tiny_world, tmp_path / "one.yaml", STEPS)
    saves = ("--set", "train.save_every_s=1")
    submit(cluster, runs_dir, config, "plain", *saves, ranks=1)

    disk = tmp_path / "disk"
    disk.mkdir()
    tar = SlowTar(tmp_path / "tools")
    staged = ("--set", f"launch.stage_env={disk}", "--set", tar.setup)
    submit(
        cluster, runs_dir, config, "staged", "--partition=a100-preempt", *saves, *staged, ranks=1
    )
    run = runs_dir / "staged"
    cluster.wait_until(tar.unpacker.exists, 120, "the files are unpacked")
    os.kill(int(tar.unpacker.read_text()), signal.SIGKILL)
    tar.gate.unlink()
    wait_for_checkpoints(cluster, run)
    # It must not finish before Slurm comes, whose CONT at a preemption wakes it.
    os.kill(pid_of_rank(run, 0), signal.SIGSTOP)
    assert interpreter(run).startswith(f"{disk}/")
    assert logs(run).count("unpacked in") == 1 and "from an earlier start" not in logs(run)
    begun = len(read_ledgers(run / "ledger"))
    # The job with priority takes all nodes.
    wait_finished(cluster, runs_dir / "plain")
    preempt(cluster)
    cluster.wait_until(
        lambda: len(made := read_ledgers(run / "ledger")) > begun and made[-1].first_step,
        180,
        "the preempted run trains again",
    )
    rank = pid_of_rank(run, 0)
    os.kill(rank, signal.SIGSTOP)
    assert interpreter(run).startswith(f"{disk}/")
    assert logs(run).count("unpacked in") == 1 and "from an earlier start" in logs(run)

    mgpt4(cluster, runs_dir, "cancel", "staged", "--save")
    os.kill(rank, signal.SIGCONT)
    cluster.wait_until(lambda: not cluster.squeue(), 60, "the job ended")
    mgpt4(cluster, runs_dir, "resume", "staged", "--set", f"launch.stage_env={full_disk}")
    cluster.wait_until(lambda: pid_of_rank(run, 0) != rank, 180, "the resumed run starts")
    assert Path(interpreter(run)) == environment / "bin" / "python"
    assert "could not be unpacked" in logs(run)
    assert not list(full_disk.glob("*/*/"))
    wait_finished(cluster, run)
    assert_every_step_once(run, STEPS)
    assert final_projector(run) == final_projector(runs_dir / "plain")
