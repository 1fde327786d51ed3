"""Starting, recognising and ending processes, and only our own.

No process ids are stored: after a crash an id in a file may belong to a stranger. Instead every
daemon is started with two marks in its environment, which /proc shows for as long as the process
lives and which whatever it starts inherits (the tasks of a job do not, they get the job's
environment). Nothing else has these variables, so what carries them is ours. From Slurm 24.11 on a
slurmstepd overwrites its environment; it is recognised by the socket it holds in its node's spool.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from devcluster_lib.layout import Layout

PROC = Path("/proc")
CLUSTER_MARK = "MGPT4_DEVCLUSTER_DAEMON_OF"
NAME_MARK = "MGPT4_DEVCLUSTER_DAEMON"


@dataclasses.dataclass(frozen=True)
class Process:
    """A process as it was found; the start time tells it from a later one with the same id."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to the process's start."""
    name: str
    """The daemon it is or was started by: munged, slurmctld, slurmd-node1 ..."""
    command: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return start_ticks(self.pid) == self.start_ticks

    @property
    def is_step(self) -> bool:
        """Whether it is the slurmstepd of a job, and not a daemon."""
        return self.command.startswith("slurmstepd")


def spawn(
    argv: list[str], env: dict[str, str], output: Path, cluster: Path, name: str
) -> subprocess.Popen:
    """Start ``argv``, marked, in a session of its own so that it outlives us."""
    with output.open("ab") as file:
        return subprocess.Popen(
            argv,
            env={**env, CLUSTER_MARK: str(cluster), NAME_MARK: name},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def find(layout: Layout) -> list[Process]:
    """The daemons of this cluster and what they started, except the tasks of jobs."""
    nodes = _nodes_of_sockets(layout.spool)
    found = []
    for pid in all_pids():
        env = environment(pid)
        name = env.get(NAME_MARK) if env.get(CLUSTER_MARK) == str(layout.root) else None
        command = command_line(pid)
        if name is None and nodes and command.startswith("slurmstepd"):
            held = (nodes[inode] for inode in _sockets(pid) if inode in nodes)
            name = next((f"slurmd-{node}" for node in held), None)
        ticks = start_ticks(pid)
        if name is not None and ticks is not None:
            found.append(Process(pid, ticks, name, command))
    return sorted(found, key=lambda process: (process.start_ticks, process.pid))


def _nodes_of_sockets(spool: Path) -> dict[str, str]:
    """The node of each Unix socket that lies in its folder under ``spool``, by the inode."""
    nodes = {}
    for line in (PROC / "net/unix").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and Path(fields[7]).parent.parent == spool:
            nodes[fields[6]] = Path(fields[7]).parent.name
    return nodes


def _sockets(pid: int) -> list[str]:
    """The inodes of the sockets that a process holds open."""
    inodes = []
    with contextlib.suppress(OSError):
        for link in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    inodes.append(target[len("socket:[") : -1])
    return inodes


def find_tasks(slurm_conf: Path) -> list[Process]:
    """The processes of jobs of this cluster, found by the environment Slurm gave them."""
    found = []
    for pid in all_pids():
        env = environment(pid)
        ticks = start_ticks(pid)
        # SLURMD_NODENAME is not in the shell of a user who called salloc.
        if (
            env.get("SLURM_CONF") == str(slurm_conf)
            and "SLURMD_NODENAME" in env
            and ticks is not None
        ):
            found.append(Process(pid, ticks, f"job {env.get('SLURM_JOB_ID')}", command_line(pid)))
    return found


def with_descendants(roots: Iterable[Process]) -> list[Process]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        fields = _stat_fields(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found = {root.pid: root for root in roots}
    todo = list(found.values())
    while todo:
        parent = todo.pop()
        for pid in children.get(parent.pid, ()):
            ticks = start_ticks(pid)
            if pid not in found and ticks is not None:
                found[pid] = Process(pid, ticks, parent.name, command_line(pid))
                todo.append(found[pid])
    return list(found.values())


def end(processes: Iterable[Process], patience_s: float) -> None:
    """TERM each of these; KILL those that are still there ``patience_s`` later."""
    processes = list(processes)
    _signal(processes, signal.SIGTERM)
    if not wait_until(lambda: not any(process.alive for process in processes), patience_s):
        kill(processes)


def kill(processes: Iterable[Process]) -> None:
    """KILL these, and wait until they are gone."""
    processes = list(processes)
    _signal(processes, signal.SIGKILL)
    wait_until(lambda: not any(process.alive for process in processes), 30)


def _signal(processes: Iterable[Process], number: int) -> None:
    for process in processes:
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def wait_until(condition: Callable[[], object], limit_s: float, pause_s: float = 0.05) -> bool:
    """Ask ``condition`` until it is true; False if it was not within ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def all_pids() -> list[int]:
    """The id of every process on the machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def command_line(pid: int) -> str:
    """The process's arguments, separated by blanks; empty if it is gone."""
    return " ".join(_read_strings(pid, "cmdline"))


def environment(pid: int) -> dict[str, str]:
    """The environment the process was started with; empty if it is gone or not ours to read."""
    return dict(item.split("=", 1) for item in _read_strings(pid, "environ") if "=" in item)


def _read_strings(pid: int, name: str) -> list[str]:
    try:
        content = (PROC / str(pid) / name).read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").rstrip("\0 ").split("\0")


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (the state) on; None if the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the name in parentheses, and may hold blanks and parentheses itself.
    return text.rpartition(")")[2].split()
