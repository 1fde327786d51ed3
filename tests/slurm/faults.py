"""What can happen to a run on a cluster; fault_table.py has what must come of each.

A fault strikes a run of `STEPS` steps that has begun. It waits for conditions, never for a time,
and does what the world would do, through Slurm, the kernel or the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import (
    begin_mgpt4,
    mgpt4,
    pid_of_rank,
    preempt,
    stand_still,
    wait_for_checkpoints,
    wait_for_step,
)
from tests.support.runs import last_step, patience, records

STEPS = 200
"""Of each run: some ten seconds of steps on two cores."""

EARLY_STEP = 20
"""Enough to be in the middle, with most of the run to come."""

TIME_LIMIT_S = 60
"""The shortest that Slurm has."""

SUSPENDED_S = 35
"""Longer than all that ends a hang of eight seconds: the watchdog, and its alarm."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Victim:
    """A run that has been submitted.

    Attributes:
        cluster: where.
        run: its folder.
        job: its job's id.
        ranks: one on each of so many nodes.
    """

    cluster: Cluster
    run: Path
    job: str
    ranks: int

    def attempts(self) -> list[Attempt]:
        """What its ledgers tell so far."""
        return read_ledgers(self.run / "ledger")

    def mgpt4(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command on it."""
        return mgpt4(self.cluster, self.run.parent, *arguments)

    def is_queued(self) -> bool:
        """Whether a job of it waits or runs; a resumed run has another job than before."""
        return bool(self.cluster.squeue())

    def kinds(self) -> set[str]:
        """Kinds of all ledger lines so far."""
        return {str(record["kind"]) for record in records(self.run)}


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: for people and for the report.
        strike: does it; returns when the run is on its way again, or stopped for good.
        causes: regular expression for the attempts' causes in the ledger, joined by " > ".
        ranks: of the run, one on each node.
        site: flags of ``devcluster up``; none is the cluster that all tests share.
        settings: of the run.
        small_disk: give the run's folder a file system of its own.
        preloaded: its processes get libfaults.c, whose faults are switched on by files in the
            folder ``faults`` beside the runs.
        replays: whether steps may be done twice: where nobody was told to save in time.
        ends: "finished", or how it stops cleanly.
        other_ranks: it ends on another number of ranks, so that losses agree to 1e-4 only.
        check: more that must hold in the end.
        in_ci: whether every test run has it, or only a soak.
    """

    name: str
    strike: Callable[[Victim], None]
    causes: str
    ranks: int = 2
    site: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)
    small_disk: bool = False
    preloaded: bool = False
    replays: bool = False
    ends: str = "finished"
    other_ranks: bool = False
    check: Callable[[Victim], None] | None = None
    in_ci: bool = False

    @property
    def id(self) -> str:
        """For pytest's command line."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """When the tests run it; a disk is the same under every Slurm."""
        if not self.in_ci:
            return [pytest.mark.soak]
        return [] if self.small_disk else [pytest.mark.every_slurm]


# Slurm


def preempted(victim: Victim) -> None:
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    preempt(victim.cluster, victim.run)


def preempted_thrice(victim: Victim) -> None:
    for number in (1, 2, 3):
        _wait_for_start(victim, number)
        wait_for_step(victim.cluster, victim.run, last_step(victim.run) + 1)
        preempt(victim.cluster, victim.run)


def preempted_while_starting(victim: Victim) -> None:
    # Its processes are there and still importing torch: that takes them seconds. Before srun has
    # started them, Slurm's signal reaches none: the requeue does after the grace time.
    victim.cluster.wait_until(
        lambda: len(processes_of(victim, "python", "SLURM_STEP_ID=0")) >= victim.ranks,
        60,
        "the ranks' processes are there",
    )
    preempt(victim.cluster)


def preempted_after_a_controller_restart(victim: Victim) -> None:
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    victim.cluster.devcluster("restart-controller")
    preempt(victim.cluster, victim.run)


def time_limit_reached(victim: Victim) -> None:
    """Let the run stand still until its limit is so near that it cannot finish before.

    Slurm's CONT, which comes with the warning, wakes it each time.
    """
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    pid = pid_of_rank(victim.run, 0)

    def near_its_end() -> bool:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return True  # the warning came early, and it has stopped already
        return _run_time_s(victim) >= TIME_LIMIT_S * 0.9

    try:
        victim.cluster.wait_until(near_its_end, TIME_LIMIT_S, "the time limit is near")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def cancelled(victim: Victim) -> None:
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    victim.cluster.run(["scancel", victim.job])
    victim.cluster.wait_until(
        lambda: victim.job not in victim.cluster.squeue(), 60, "the job left the queue"
    )


def requeued(victim: Victim) -> None:
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    victim.cluster.run(["scontrol", "requeue", victim.job])


def suspended(victim: Victim) -> None:
    """Suspend it until a watchdog would have ended it, were it awake."""
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    victim.cluster.run(["scontrol", "suspend", victim.job])
    victim.cluster.wait_for_state(victim.job, "SUSPENDED")
    since = time.monotonic()
    victim.cluster.wait_until(
        lambda: time.monotonic() - since > SUSPENDED_S, 2 * SUSPENDED_S, "it was suspended"
    )
    victim.cluster.run(["scontrol", "resume", victim.job])


def counted_apart(victim: Victim) -> None:
    assert victim.attempts()[0].buckets["suspended"] > SUSPENDED_S - 3


def first_node_lost(victim: Victim) -> None:
    _lose_node(victim, 0)


def second_node_lost(victim: Victim) -> None:
    _lose_node(victim, 1)


def _lose_node(victim: Victim, index: int) -> None:
    wait_for_checkpoints(victim.cluster, victim.run)
    wait_for_step(victim.cluster, victim.run, last_step(victim.run) + 10)
    stand_still(victim.run)  # or it finishes while the commands start
    nodes = ["scontrol", "show", "hostnames", victim.cluster.job(victim.job)["NodeList"]]
    node = victim.cluster.run(nodes).stdout.split()[index]
    victim.cluster.devcluster("node-down", node)
    victim.cluster.wait_until(
        lambda: victim.cluster.job(victim.job)["Restarts"] == "1", 60, "Slurm requeued the job"
    )
    victim.cluster.devcluster("node-up", node)


# Processes


def first_rank_killed(victim: Victim) -> None:
    _kill(victim, lambda: pid_of_rank(victim.run, 0))


def second_rank_killed(victim: Victim) -> None:
    _kill(victim, lambda: pid_of_rank(victim.run, 1))


def data_worker_killed(victim: Victim) -> None:
    _kill(victim, lambda: _children(pid_of_rank(victim.run, 1))[0])


def srun_killed(victim: Victim) -> None:
    # It forks a helper; the first is the one that the batch script waits for.
    _kill(victim, lambda: processes_of(victim, "srun")[0])


def _kill(victim: Victim, pid: Callable[[], int]) -> None:
    wait_for_checkpoints(victim.cluster, victim.run)
    wait_for_step(victim.cluster, victim.run, last_step(victim.run) + 10)
    os.kill(pid(), signal.SIGKILL)


def first_rank_stopped(victim: Victim) -> None:
    wait_for_checkpoints(victim.cluster, victim.run)
    os.kill(pid_of_rank(victim.run, 0), signal.SIGSTOP)


def told_of_the_hang(victim: Victim) -> None:
    first = victim.attempts()[0]
    # Slurm's CONT and TERM wake the stopped one, which then finds out for itself.
    assert 1 in [hang["rank"] for hang in first.hangs]
    (told,) = (path.read_text() for path in (victim.run / "slurm").glob("*_1_log.out"))
    assert "=== hang: no sign of life" in told and "loop.py" in told


# Storage


def disk_full(victim: Victim) -> None:
    """Fill the run's file system until the run has worked on without it for a while."""
    wait_for_checkpoints(victim.cluster, victim.run)
    rubbish = victim.run.parent / "rubbish"
    _fill(rubbish)
    pid = pid_of_rank(victim.run, 0)
    until = _processor_s(pid) + 2
    victim.cluster.wait_until(lambda: _processor_s(pid) >= until, 60, "rank 0 worked on")
    rubbish.unlink()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def folder_read_only(victim: Victim) -> None:
    """Let the run's folder refuse every file that is opened from now on, until a save failed."""
    wait_for_checkpoints(victim.cluster, victim.run)
    with _read_only(victim.run):
        victim.cluster.wait_until(lambda: "save_failed" in victim.kinds(), 60, "a save failed")


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Put a read-only view of a folder over it; files that are open already stay writable."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        # Lazily: somebody may be reading.
        subprocess.run(["umount", "--lazy", folder], check=True)


def told_that_it_cannot_save(victim: Victim) -> None:
    # In the ledger, which keeps its lines until the disk takes them; the log may be lost.
    assert "save_failed" in victim.kinds()


def newest_truncated(victim: Victim) -> None:
    def truncate(folder: Path) -> None:
        file = folder / "projector.safetensors"
        os.truncate(file, file.stat().st_size // 2)

    _damage_newest(victim, truncate)


def newest_bit_flipped(victim: Victim) -> None:
    def flip(folder: Path) -> None:
        file = folder / "optimizer.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    _damage_newest(victim, flip)


def newest_without_manifest(victim: Victim) -> None:
    _damage_newest(victim, lambda folder: (folder / "manifest.json").unlink())


def _damage_newest(victim: Victim, damage: Callable[[Path], None]) -> None:
    """Damage the newest checkpoint while the job waits in the queue."""
    wait_for_checkpoints(victim.cluster, victim.run, 2)
    stand_still(victim.run)  # or it finishes while the command starts
    victim.cluster.run(["scontrol", "requeuehold", victim.job])
    victim.cluster.wait_for_state(victim.job, "PENDING", timeout_s=60)
    damage(max(victim.run.glob("checkpoints/step-*")))
    victim.cluster.run(["scontrol", "release", victim.job])


def fell_back(victim: Victim) -> None:
    first, second = victim.attempts()
    assert len(second.damaged) == 1
    assert first.last_saved_step is not None
    assert 0 < second.restored_step < first.last_saved_step


# People


def resumed_on_one_gpu(victim: Victim) -> None:
    _cancel_with_a_save(victim)
    victim.mgpt4("resume", victim.run.name, "--gpus", "1", "--nodes", "1")


def resumed_twice_at_once(victim: Victim) -> None:
    _cancel_with_a_save(victim)
    both = [
        begin_mgpt4(victim.cluster, victim.run.parent, "resume", victim.run.name) for _ in range(2)
    ]
    told = [process.communicate(timeout=120 * patience())[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 7], told
    refused = told[codes.index(7)]
    assert re.search(r"being submitted by another command|is alive: .*job \d+", refused), refused


def _cancel_with_a_save(victim: Victim) -> None:
    wait_for_step(victim.cluster, victim.run, EARLY_STEP)
    victim.mgpt4("cancel", victim.run.name, "--save")
    victim.cluster.wait_until(
        lambda: victim.job not in victim.cluster.squeue(), 60, "the job left the queue"
    )


# Looking


def _wait_for_start(victim: Victim, number: int) -> None:
    victim.cluster.wait_until(
        lambda: len(victim.attempts()) >= number and victim.attempts()[-1].first_step is not None,
        120,
        f"start {number} made a step",
    )


def _run_time_s(victim: Victim) -> int:
    hours, minutes, seconds = victim.cluster.job(victim.job)["RunTime"].split(":")
    return (int(hours) * 60 + int(minutes)) * 60 + int(seconds)


def processes_of(victim: Victim, name: str, *variables: str) -> list[int]:
    """Processes of the job's tasks and script with this name and environment, oldest first."""
    conf = f"SLURM_CONF={victim.cluster.env['SLURM_CONF']}"
    wanted = {entry.encode() for entry in (f"SLURM_JOB_ID={victim.job}", conf, *variables)}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip().startswith(name):
                environment = set((folder / "environ").read_bytes().split(b"\0"))
                if wanted <= environment:
                    found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended, or is not a job's
    return sorted(found)


def _children(pid: int) -> list[int]:
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(child) for children in lists for child in children)


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
