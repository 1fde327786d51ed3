"""A cluster's folder: where things lie in it, the options it was made with, its saved state."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from devcluster_lib.errors import DevclusterError

DEFAULT_DIR = "/tmp/mgpt4-devcluster"
# A Unix socket's path holds 107 characters, and the longest that Slurm makes in here is
# spool/node1/node1_12345.4294967291.
MAX_DIR_CHARS = 68
PREEMPT_MODES = ("REQUEUE", "CANCEL", "SUSPEND")


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``devcluster up`` was asked for."""

    nodes: int = 4
    """Virtual nodes, named node1, node2 ..."""
    gpus_per_node: int = 4
    """Pretended A100s on each node."""
    accounting: bool = True
    """Run slurmdbd and MariaDB, so that sacct works."""
    grace_s: int = 20
    """GraceTime of a100-preempt: seconds between a preemption's TERM and its KILL."""
    kill_wait_s: int = 30
    """KillWait: seconds between TERM and KILL for time-outs and failed steps (Slurm's default)."""
    send_user_signal: bool = False
    """preempt_send_user_signal: at preemption a job's --signal is sent, in the place of TERM."""
    preempt_mode: str = "REQUEUE"
    """What happens to a preempted job after its grace time: REQUEUE or CANCEL. SUSPEND has no
    grace time, and takes cores but no GPUs."""
    cluster_name: str = "devcluster"
    """ClusterName; two clusters that share a file system have two names."""
    slurm: str = "native"
    """The release of Slurm, such as 24.11; in a running cluster never "native"."""

    def validate(self) -> None:
        """Raise with every fault at once."""
        faults = []
        for name, lowest in (
            ("nodes", 1),
            ("gpus_per_node", 1),
            ("grace_s", 0),
            ("kill_wait_s", 1),
        ):
            if getattr(self, name) < lowest:
                faults.append(f"{name} is {getattr(self, name)}, and must be at least {lowest}")
        if self.preempt_mode not in PREEMPT_MODES:
            faults.append(f"preempt_mode is {self.preempt_mode!r}, not one of {PREEMPT_MODES}")
        if faults:
            raise DevclusterError("; ".join(faults), "see devcluster up --help")

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The paths inside one cluster's folder."""

    root: Path

    @property
    def slurm_conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def gres_conf(self) -> Path:
        return self.root / "gres.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.root / "slurmdbd.conf"

    @property
    def state_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def dev(self) -> Path:
        return self.root / "dev"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def controller_state(self) -> Path:
        return self.root / "state"

    @property
    def database(self) -> Path:
        return self.root / "db"

    @property
    def clients(self) -> Path:
        """The commands of this cluster's Slurm, to be the first folder in PATH."""
        return self.root / "bin"

    @property
    def daemons(self) -> Path:
        return self.root / "sbin"

    @property
    def task_prolog(self) -> Path:
        return self.root / "task-prolog"

    @property
    def munge_socket(self) -> Path:
        return self.run / "munge.socket"

    @property
    def munge_key(self) -> Path:
        return self.run / "munge.key"

    @property
    def database_socket(self) -> Path:
        return self.run / "db.socket"

    def log_of(self, process: str) -> Path:
        """What the daemon ``process`` itself writes to its log."""
        return self.log / f"{process}.log"

    def output_of(self, process: str) -> Path:
        """The standard output and error of ``process``."""
        return self.log / f"{process}.out"


def open_layout(folder: str) -> Layout:
    """The layout under ``folder``; refuses a name too long and a folder that is something else."""
    # Resolved, because processes are recognised by this name: two names must not be two clusters.
    root = Path(folder).expanduser().resolve()
    if len(str(root)) > MAX_DIR_CHARS:
        raise DevclusterError(
            f"--dir {root} has {len(str(root))} characters; sockets in it allow {MAX_DIR_CHARS}",
            f"choose a shorter one, such as {DEFAULT_DIR}",
        )
    if any(char.isspace() or char in "\"'\\#,;=%$" for char in str(root)):
        raise DevclusterError(
            f"--dir {str(root)!r} has a character that slurm.conf cannot hold",
            "use letters, digits, '-', '_', '.' and '/'",
        )
    if root.exists() and not root.is_dir():
        raise DevclusterError(f"--dir {root} is a file", "name a folder")
    return Layout(root)


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the folder for one command; a second command waits for the first."""
    _refuse_strangers(layout)
    # Kept for ever: a lock file that is removed can be held by two.
    layout.root.mkdir(parents=True, exist_ok=True)
    with layout.lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_strangers(layout: Layout) -> None:
    """Raise if the folder is somebody else's: we are about to write and remove things in it."""
    if layout.state_file.exists() or not layout.root.exists():
        return
    strangers = {path.name for path in layout.root.iterdir()} - {layout.lock_file.name}
    if strangers:
        raise DevclusterError(
            f"{layout.root} holds other things: {', '.join(sorted(strangers)[:5])}",
            "name an empty or new folder",
        )


def make_folders(layout: Layout) -> None:
    """Make a new, empty set of folders, in place of what an earlier cluster left."""
    remove_contents(layout, keep=(layout.state_file,))
    for folder in (layout.run, layout.log, layout.dev, layout.spool, layout.controller_state):
        folder.mkdir(mode=0o755)
    # munged wants its socket's folder open to search, whatever the caller's umask.
    layout.run.chmod(0o755)


def remove_contents(layout: Layout, keep: tuple[Path, ...]) -> None:
    """Remove what this tool made in the folder, except ``keep`` and the lock (it is being held)."""
    for name in _own_names(layout) - {path.name for path in (*keep, layout.lock_file)}:
        path = layout.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _own_names(layout: Layout) -> set[str]:
    folders = (layout.run, layout.log, layout.dev, layout.spool)
    folders += (layout.controller_state, layout.database, layout.clients, layout.daemons)
    files = (layout.slurm_conf, layout.gres_conf, layout.slurmdbd_conf, layout.state_file)
    files += (layout.task_prolog,)
    return {path.name for path in (*folders, *files, layout.lock_file)}


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)
