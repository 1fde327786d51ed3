"""One function per daemon: start it, wait until it serves, and say what went wrong if it does not.

Daemons run in the foreground of their own session, so the id we start is the id that serves.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from devcluster_lib.conf import ACCOUNT, DATABASE, Ports
from devcluster_lib.errors import DevclusterError, PortTakenError
from devcluster_lib.layout import Layout
from devcluster_lib.packages import SEARCH_PATH
from devcluster_lib.processes import spawn, wait_until

START_LIMIT_S = 120
# Short, because a stranger on our port may never answer.
PROBE_LIMIT_S = 4


def client_environment(layout: Layout) -> dict[str, str]:
    """The environment for Slurm's commands: this cluster's, and no option from the shell."""
    prefixes = ("SLURM", "SBATCH_", "SACCT", "SINFO_", "SQUEUE_", "SCANCEL_", "SCONTROL_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {
        **kept,
        "PATH": _search_path(layout),
        "SLURM_CONF": str(layout.slurm_conf),
        "LC_ALL": "C",
    }


def daemon_environment(layout: Layout) -> dict[str, str]:
    """A small environment of our own making: nothing from the shell may reach a job this way."""
    return {
        "PATH": _search_path(layout),
        "HOME": os.environ.get("HOME", "/root"),
        "LC_ALL": "C.UTF-8",
        "SLURM_CONF": str(layout.slurm_conf),
        # Where libmariadb, inside slurmdbd, looks for the database.
        "MYSQL_UNIX_PORT": str(layout.database_socket),
    }


def _search_path(layout: Layout) -> str:
    """This cluster's Slurm before the machine's own."""
    return f"{layout.clients}:{layout.daemons}:{SEARCH_PATH}"


def pick_ports(nodes: int) -> Ports:
    """Ports that are free now. Somebody may take one before we do: see `PortTakenError`."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Below the range from which the kernel serves outgoing connections.
    candidates = list(range(10_000, max(first_ephemeral, 12_000)))
    random.shuffle(candidates)
    free = []
    for port in candidates:
        if _is_free(port):
            free.append(port)
        if len(free) == nodes + 2:
            return Ports(slurmctld=free[0], slurmdbd=free[1], slurmd=tuple(free[2:]))
    raise DevclusterError(
        f"fewer than {nodes + 2} free TCP ports from {candidates[0]} to {candidates[-1]}",
        "ask for fewer --nodes, or end what listens there (ss -ltn)",
    )


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def run_client(layout: Layout, *argv: str, limit_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands against this cluster; the caller looks at the exit status."""
    env = client_environment(layout)
    try:
        return subprocess.run(
            argv, env=env, text=True, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"no answer within {limit_s} s")


def start_munged(layout: Layout) -> None:
    """Start a munged with a key and a socket of its own."""
    layout.munge_key.touch(mode=0o600)
    layout.munge_key.write_bytes(os.urandom(128))
    argv = ["munged", "--foreground"]
    # It insists on safe folders all the way up, and a test's folder is private: force turns
    # that into a warning.
    argv += ["--force", f"--socket={layout.munge_socket}", f"--key-file={layout.munge_key}"]
    argv += [f"--pid-file={layout.run}/munged.pid", f"--log-file={layout.log_of('munged')}"]
    argv += [f"--seed-file={layout.run}/munged.seed"]
    _start(layout, "munged", argv, lambda: _answers(layout.munge_socket))


def begin_database_install(layout: Layout) -> subprocess.Popen:
    """Begin to make MariaDB's system tables, so that others may start meanwhile."""
    argv = ["mariadb-install-db", *_database_options(layout)]
    argv += ["--auth-root-authentication-method=socket", "--skip-test-db"]
    name = "mariadb-install-db"
    return spawn(argv, daemon_environment(layout), layout.output_of(name), layout.root, name)


def start_mariadbd(layout: Layout, install: subprocess.Popen) -> None:
    """Wait for the end of ``install``, start MariaDB behind our socket, make Slurm's database."""
    if install.wait() != 0:
        raise failure(layout, "mariadb-install-db", f"ended with status {install.returncode}")
    argv = ["mariadbd", *_database_options(layout)]
    argv += [f"--socket={layout.database_socket}", "--skip-networking"]
    argv += [f"--pid-file={layout.run}/mariadbd.pid"]
    _start(layout, "mariadbd", argv, lambda: _answers(layout.database_socket))
    # slurmdbd would make it, but not with libmariadb 11.8: it cannot reuse a handle whose first
    # connect failed.
    statement = f"CREATE DATABASE IF NOT EXISTS {DATABASE}"
    argv = ["mariadb", "--no-defaults", f"--socket={layout.database_socket}", "-e", statement]
    made = run_client(layout, *argv)
    if made.returncode != 0:
        raise failure(layout, "mariadbd", f"{statement}: {made.stderr.strip()}")


def _database_options(layout: Layout) -> list[str]:
    return [
        "--no-defaults",
        f"--datadir={layout.database}",
        # It names temporary tables by its process id, and roots of releases share /tmp, not ids.
        f"--tmpdir={layout.run}",
        "--user=root",
        # A small log and no flushing: quick to make, and nobody needs it after `down`.
        "--innodb-log-file-size=8M",
        "--innodb-buffer-pool-size=64M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--innodb-doublewrite=0",
        # Made for running tests; saves about 1,500 fdatasync, seconds on a busy disk.
        "--debug-no-sync",
        "--performance-schema=OFF",
        "--skip-name-resolve",
    ]


def start_slurmdbd(layout: Layout, cluster: str) -> None:
    """Start slurmdbd, and register the cluster, one account and the user root."""
    layout.slurmdbd_conf.chmod(0o600)

    def serves() -> bool:
        result = run_client(layout, "sacctmgr", "-n", "show", "cluster", limit_s=PROBE_LIMIT_S)
        return result.returncode == 0

    _start(layout, "slurmdbd", ["slurmdbd", "-D"], serves)
    for words in (
        ["add", "cluster", cluster],
        ["add", "account", ACCOUNT, f"Cluster={cluster}", "Description=devcluster"],
        ["add", "user", "root", f"Account={ACCOUNT}", f"Cluster={cluster}"],
        # Slurm brings an account called root, and would choose that.
        ["modify", "user", "root", "set", f"DefaultAccount={ACCOUNT}"],
    ):
        result = run_client(layout, "sacctmgr", "-i", *words)
        # "Nothing new added" ends with status 1: it is there, and that is all we want.
        if result.returncode != 0 and "already exists" not in result.stdout + result.stderr:
            raise failure(
                layout, "slurmdbd", f"sacctmgr {' '.join(words)}: {result.stderr.strip()}"
            )


def start_slurmctld(layout: Layout) -> None:
    """Start the controller; it takes up where an earlier one left off."""

    def serves() -> bool:
        return run_client(layout, "scontrol", "ping", limit_s=PROBE_LIMIT_S).returncode == 0

    argv = ["slurmctld", "-D", "-f", str(layout.slurm_conf)]
    _start(layout, "slurmctld", argv, serves)


def start_slurmd(layout: Layout, node: str) -> None:
    """Start the daemon of one virtual node; whether the node is idle is for the caller to ask."""
    argv = ["slurmd", "-D", "-f", str(layout.slurm_conf), "-N", node]
    argv += ["-d", str(layout.daemons / "slurmstepd")]
    _start(layout, slurmd_name(node), argv, ready=None)


def slurmd_name(node: str) -> str:
    """What the slurmd of a node is called in `status` and in the names of its logs."""
    return f"slurmd-{node}"


def _start(layout: Layout, name: str, argv: list[str], ready: Callable[[], bool] | None) -> None:
    argv = [shutil.which(argv[0], path=_search_path(layout)) or argv[0], *argv[1:]]
    env = daemon_environment(layout)
    popen = spawn(argv, env, layout.output_of(name), layout.root, name)
    if ready is None:
        return
    if not wait_until(
        lambda: popen.poll() is not None or port_is_taken(layout, name) or ready(), START_LIMIT_S
    ):
        raise failure(layout, name, f"does not answer after {START_LIMIT_S} s")
    if popen.poll() is not None:
        raise failure(layout, name, f"ended with status {popen.returncode}")
    if port_is_taken(layout, name):
        # It would try the same port again and again.
        raise failure(layout, name, "cannot listen")


def port_is_taken(layout: Layout, name: str) -> bool:
    """Whether the daemon's log says that its port is another process's."""
    lines = tail(layout.log_of(name)) + tail(layout.output_of(name))
    return any("Address already in use" in line for line in lines)


def failure(layout: Layout, name: str, what: str) -> DevclusterError:
    """The error for a daemon that did not start, with the end of its log."""
    lines = tail(layout.log_of(name)) or tail(layout.output_of(name))
    kind = PortTakenError if port_is_taken(layout, name) else DevclusterError
    shown = "".join(f"\n    {line}" for line in lines[-6:])
    return kind(f"{name} {what}{shown}", f"see {layout.log}/{name}.*")


def tail(path: Path, lines: int = 40) -> list[str]:
    """The last lines of a text file; none if it is not there."""
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _answers(path: Path) -> bool:
    """Whether somebody listens at this Unix socket."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
