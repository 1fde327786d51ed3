"""What can happen to a run's folder, machine and clock beside the scheduler; test_folder_faults.py
has what must come of each.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from mgpt4_hpc.distributed import candidate_ports
from mgpt4_hpc.run_dir import RunDir
from tests.slurm.faults import (
    EARLY_STEP,
    SUSPENDED_S,
    Victim,
    processes_of,
)
from tests.slurm.jobs import (
    pid_of_rank,
    preempt,
    stand_still,
    wait_finished,
    wait_for_checkpoints,
    wait_for_step,
)
from tests.support.runs import final_projector, last_step

_CGROUPS = Path("/sys/fs/cgroup")


# Storage


def slow_without_links(victim: Victim) -> None:
    with _fault(victim, "no-links"), _fault(victim, "slow-fsync"):
        saved = len(list(victim.run.glob("checkpoints/step-*")))
        wait_for_checkpoints(victim.cluster, victim.run, saved + 1)
        preempt(victim.cluster, victim.run)
        victim.cluster.wait_until(lambda: len(victim.attempts()) == 2, 120, "it began again")


def quota_reached(victim: Victim) -> None:
    wait_for_checkpoints(victim.cluster, victim.run)
    with _fault(victim, "quota"):
        victim.cluster.wait_until(lambda: "save_failed" in victim.kinds(), 60, "a save failed")


def folder_away(victim: Victim) -> None:
    """Hide the run under an empty mount, as where a file server's mount is lost, for ten steps."""
    wait_for_checkpoints(victim.cluster, victim.run)
    runs = victim.run.parent
    pid, at = pid_of_rank(victim.run, 0), last_step(victim.run)
    subprocess.run(["mount", "-t", "tmpfs", "away", runs], check=True)
    try:
        ledger = Path(f"/proc/{pid}/fd")
        assert not victim.run.exists() and ledger.exists()
        _pass_time(victim, 10)
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)
    wait_for_step(victim.cluster, victim.run, at)


def backup_restored(victim: Victim) -> None:
    """Put an older copy of the folder in its place while the job waits in the queue."""
    wait_for_checkpoints(victim.cluster, victim.run)
    backup = victim.run.with_name("backup")
    subprocess.run(["cp", "-a", victim.run, backup], check=False)  # files come and go meanwhile
    newest = max(backup.glob("checkpoints/step-*")).name
    victim.cluster.wait_until(
        lambda: max(victim.run.glob("checkpoints/step-*")).name > newest, 60, "a newer checkpoint"
    )
    with _held(victim):
        shutil.rmtree(victim.run)
        subprocess.run(["cp", "-a", backup, victim.run], check=True)
    shutil.rmtree(backup)


# Machine


def out_of_memory(victim: Victim) -> None:
    """Leave one rank less memory than its next allocation, until the kernel kills it."""
    wait_for_checkpoints(victim.cluster, victim.run)
    with _cgroup("memory") as group:
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
        (group / "cgroup.procs").write_text(str(pid_of_rank(victim.run, 1)))
        victim.cluster.wait_until(lambda: len(victim.attempts()) == 2, 120, "it began again")


def starved(victim: Victim) -> None:
    """Leave one rank a twentieth of a processor for some steps."""
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    with _cgroup("cpu") as group:
        (group / "cpu.cfs_quota_us").write_text("5000")
        (group / "cgroup.procs").write_text(str(pid_of_rank(victim.run, 1)))
        wait_for_step(victim.cluster, victim.run, last_step(victim.run) + 1)
        (group / "cpu.cfs_quota_us").write_text("-1")
        (group.parent / "cgroup.procs").write_text(str(pid_of_rank(victim.run, 1)))


def all_stopped(victim: Victim) -> None:
    """Stop every process of the job for longer than a watchdog waits."""
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    processes = processes_of(victim, "")
    assert len(processes) > victim.ranks
    _signal(processes, signal.SIGSTOP)
    _pass_time(victim, SUSPENDED_S)
    _signal(processes, signal.SIGCONT)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def ports_taken(victim: Victim) -> None:
    """Take the first ports where the ranks would meet, and let another run meet on these nodes."""
    wait_for_checkpoints(victim.cluster, victim.run)
    cluster = victim.cluster.run("scontrol show config").stdout
    name = next(line.split()[-1] for line in cluster.splitlines() if "ClusterName" in line)
    with ExitStack() as open_ports:
        with _held(victim):
            token = f"slurm-{name}-{victim.job}-1-{RunDir(victim.run).run_id}"
            for port in candidate_ports(token)[:3]:
                listener = open_ports.enter_context(socket.socket())
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", port))
                listener.listen()
        victim.mgpt4("resume", victim.run.name, "--as", "twin")
        wait_finished(victim.cluster, victim.run, alive=victim.is_queued)
    wait_finished(victim.cluster, victim.run.with_name("twin"), alive=victim.is_queued)


def as_its_twin(victim: Victim) -> None:
    assert final_projector(victim.run) == final_projector(victim.run.with_name("twin"))


# Clocks


def clock_apart(victim: Victim) -> None:
    """Start it again where the second node's clock is an hour ahead."""
    wait_for_checkpoints(victim.cluster, victim.run)
    node = _nodes(victim)[1]
    with _held(victim):
        _switch(victim, f"clock-{node}").touch()


def clock_jumps(victim: Victim) -> None:
    """Set one node's clock an hour ahead while it trains."""
    wait_for_checkpoints(victim.cluster, victim.run)
    with _fault(victim, f"clock-{_nodes(victim)[1]}"):
        wait_for_step(victim.cluster, victim.run, last_step(victim.run) + EARLY_STEP)


# People


def cancelled_a_hundred_times(victim: Victim) -> None:
    wait_for_checkpoints(victim.cluster, victim.run)
    with _fault(victim, "slow-fsync"):
        victim.cluster.wait_until(
            lambda: list(victim.run.glob("checkpoints/.tmp-*")), 60, "it is saving"
        )
        victim.cluster.run(["scancel", victim.job])
    for _ in range(99):
        victim.cluster.run(["scancel", victim.job], check=False)
    victim.cluster.wait_until(
        lambda: victim.job not in victim.cluster.squeue(), 60, "the job left the queue"
    )


# Means


def _switch(victim: Victim, fault: str) -> Path:
    return victim.run.parent.with_name("faults") / fault


@contextmanager
def _fault(victim: Victim, fault: str) -> Iterator[None]:
    """A fault of libfaults.c is on."""
    _switch(victim, fault).touch()
    try:
        yield
    finally:
        _switch(victim, fault).unlink()


@contextmanager
def _held(victim: Victim) -> Iterator[None]:
    """The job waits in the queue until the end of the block."""
    stand_still(victim.run)  # or it finishes while the command starts
    victim.cluster.run(["scontrol", "requeuehold", victim.job])
    victim.cluster.wait_for_state(victim.job, "PENDING", timeout_s=60)
    yield
    victim.cluster.run(["scontrol", "release", victim.job])


@contextmanager
def _cgroup(controller: str) -> Iterator[Path]:
    """A group of processes under one controller (cgroup v1)."""
    if not (_CGROUPS / controller).is_dir():
        pytest.skip(f"this machine has no {controller} controller of cgroup v1")
    group = _CGROUPS / controller / f"mgpt4-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        until = time.monotonic() + 10
        while group.exists() and time.monotonic() < until:
            with suppress(OSError):  # a process that was killed may still be there
                group.rmdir()


def _pass_time(victim: Victim, seconds: float) -> None:
    since = time.monotonic()
    victim.cluster.wait_until(
        lambda: time.monotonic() - since > seconds, 2 * seconds, f"{seconds} s passed"
    )


def _nodes(victim: Victim) -> list[str]:
    nodes = ["scontrol", "show", "hostnames", victim.cluster.job(victim.job)["NodeList"]]
    return victim.cluster.run(nodes).stdout.split()
