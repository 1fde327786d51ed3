"""The run directory: the one source of truth of a run.

::

    RUN/
      run.json          identity (a UUID), name, stage, created, code version, config digest
      config.yaml       the whole resolved config, each value's origin beside it
      pins.json         what the first start found: start weights, indexes, bundle, versions
      code/             snapshot of the package that the job runs
      checkpoints/      step-00001000/...
      tensorboard/      one folder for the life of the run
      ledger/           attempt-0003.jsonl, one writer each
      attempts/0003     claimed with O_EXCL by the attempt that may write
      data/             packed folders and indexes made for this run
      evaluations/      answers to `mgpt4 eval --slurm`, a folder for each evaluation
      heartbeat.json    step, time, attempt
      slurm/            rendered sbatch, submitit's files, stdout and stderr

Whatever restarts a job reads everything from here, so a stale pickle or script is harmless.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgpt4_hpc.disk import fsync_folder
from mgpt4_hpc.errors import (
    MgptError,
    NoSuchRun,
    Overtaken,
    RunDamaged,
    RunLocked,
)
from mgpt4_hpc.identity import Hold, identity_in, new_identity
from mgpt4_hpc.text_files import parse_json

FORMAT_VERSION = 1
CLAIMED_BY_SUPERVISOR = '"by": "supervisor"'
"""Marks the claim of an attempt that never started a task; it only counts."""
_ATTEMPT = re.compile(r"\d{4,}")


class _Inside:
    """A path of ``RunDir``, for everything that a job writes or asks again."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: object) -> Path:
        """The path in ``root``."""
        return run.root / self.name


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run directory, and the few files that belong to no other room.

    Attributes:
        path: where the run is.
        expected: identity that the run must have for this process; "" takes what is there.
        hold: set in a process that works on the run; its files are then reached by the handle.
    """

    path: Path
    expected: str = field(default="", compare=False)
    hold: Hold | None = field(default=None, compare=False, repr=False)

    identity_file = _Inside("run.json")
    config_file = _Inside("config.yaml")
    pins_file = _Inside("pins.json")
    checkpoints = _Inside("checkpoints")
    tensorboard = _Inside("tensorboard")
    ledger = _Inside("ledger")
    attempts = _Inside("attempts")
    """One file per attempt that was claimed."""
    heartbeat = _Inside("heartbeat.json")
    slurm = _Inside("slurm")
    resubmit_needed = _Inside("RESUBMIT_NEEDED")
    """Left behind when no process could requeue; holds the command to run."""
    drift_accepted = _Inside("ACCEPT_DRIFT")
    """Left by the user: the next start may resume though something changed."""
    failed = _Inside("FAILED")
    """Left behind when requeueing would be pointless; holds the reason."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def root(self) -> Path:
        """The folder, for everything that a job writes or asks again."""
        return self.path if self.hold is None else self.hold.root

    @property
    def place(self) -> Path:
        """Where the folder is now; another than ``path`` once it was moved under this process."""
        return self.path if self.hold is None else self.hold.place

    @property
    def code(self) -> Path:
        """Snapshot of the package."""
        return self.path / "code"

    @property
    def data(self) -> Path:
        """Shards and indexes made for this run."""
        # A path that every node opens: not the held handle, which is this process's alone.
        is_moved = self.hold is not None and self.hold.is_moved
        return (self.place if is_moved else self.path) / "data"

    # -- identity ---------------------------------------------------------------------------

    def create(self, identity: dict[str, Any]) -> None:
        """Make the folder and its ``run.json``.

        Raises:
            RunLocked: if the run exists.
            MgptError: if the folder cannot be made.
        """
        if not str(self.path).isprintable():
            raise MgptError(
                f"the run directory {str(self.path)!r} has a line break or another control "
                "character in its path",
                why="in a batch script it would begin a command of its own",
                fix="give --runs-dir another folder",
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # 0700: the folder will hold pickled jobs, which are code.
            self.path.mkdir(mode=0o700)
        except OSError as error:
            if os.path.lexists(self.path):
                raise RunLocked(
                    f"the run {self.path} exists already",
                    fix=f"`mgpt4 resume {self.path}`, or choose another --name",
                ) from None
            raise MgptError(
                f"the run directory {self.path} cannot be made: {error.strerror}",
                fix="give --runs-dir a writable folder on storage that all nodes share",
            ) from error
        self._assert_private()
        for folder in (self.checkpoints, self.tensorboard, self.ledger, self.attempts, self.slurm):
            folder.mkdir()
        known = {"format_version": FORMAT_VERSION, "id": new_identity(), **identity}
        write_json(self.identity_file, known)

    def held(self) -> RunDir:
        """The same run, its folder held open for this process to work on.

        A run that was made before there were identities is given one.

        Raises:
            Displaced: the folder holds another run than the one expected.
            RunDamaged: its run.json is empty or cut.
            OSError: it cannot be read.
        """
        if self.hold is not None:
            return self
        try:
            held = replace(self, hold=Hold(self.path, self.expected))
        except ValueError:
            raise self.damaged(self.identity_file) from None
        held.record_identity()
        return held

    def record_identity(self) -> None:
        """Write the identity of a run that was made before there were identities into it."""
        identity = self.identity()
        if "id" not in identity:
            write_json(self.identity_file, {**identity, "id": self.run_id})

    @property
    def run_id(self) -> str:
        """The run's identity; "" where there is no run."""
        if self.hold is not None:
            return self.hold.run_id
        try:
            return identity_in(read_json(self.identity_file))
        except (OSError, ValueError):
            return ""

    @property
    def lineage(self) -> frozenset[str]:
        """Identities of the runs that this one was branched from, and its own."""
        before = self.identity().get("branched_from", [])
        return frozenset([self.run_id, *(str(ancestor.get("id")) for ancestor in before)])

    def _assert_private(self) -> None:
        mode = self.path.stat().st_mode
        if not mode & 0o022:
            return
        self.path.rmdir()
        raise MgptError(
            f"{self.path.parent} does not keep permissions: a folder made there for its owner "
            f"alone has mode {mode & 0o777:04o}",
            why="others could exchange the code that the job executes",
            fix="give --runs-dir a folder on storage with Unix permissions",
        )

    def identity(self) -> dict[str, Any]:
        """Contents of ``run.json``.

        Raises:
            NoSuchRun: if this is no run directory.
            RunDamaged: if its ``run.json`` is empty or cut.
            RunLocked: if a newer version of this package wrote it.
        """
        try:
            identity = read_json(self.identity_file)
        except OSError as error:
            raise NoSuchRun(
                f"{self.path} is no run directory: run.json cannot be read ({error})",
                fix="`mgpt4 ls` lists the runs",
            ) from error
        except ValueError:
            raise self.damaged(self.identity_file) from None
        version = identity.get("format_version", 0)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise RunLocked(
                f"{self.path} has format version {version}, known is up to {FORMAT_VERSION}",
                fix="use the newer mgpt4 that made it",
            )
        return identity

    def damaged(self, file: Path, fix: str = "") -> RunDamaged:
        """The error for an unreadable file of the run; ``fix`` names another remedy."""
        new_run = f"mgpt4 submit --set model.projector={shlex.quote(str(self.path))} ..."
        fix = f"{fix}; or" if fix else "restore it from a backup, or"
        return RunDamaged(
            f"{file} is damaged: it is empty, cut, or no text of its kind",
            why="a power loss leaves files so that were not on disk yet, and so does a full disk",
            fix=f"{fix} start a new run from this one's newest checkpoint: {new_run}",
        )

    # -- attempts: fencing without locks, which do not hold on NFS and Lustre -----------------

    def attempt_numbers(self) -> list[int]:
        """Numbers claimed so far, ascending."""
        if not self.attempts.is_dir():
            return []
        return sorted(int(p.name) for p in self.attempts.iterdir() if _ATTEMPT.fullmatch(p.name))

    def claim_attempt(self, claim: dict[str, Any]) -> int:
        """Claim the next attempt number; it makes every older attempt a trespasser.

        Args:
            claim: who claims (job id, host, process), for people to read.

        Returns:
            the number, from 1.
        """
        number = max(self.attempt_numbers(), default=0)
        # The start's own mark: a job and its number may come twice.
        text = json.dumps({**claim, "run": self.run_id, "start": new_identity()})
        while True:
            # Counted up, not listed again: NFS may show another start's claim a minute late.
            number += 1
            path = self.attempts / f"{number:04d}"
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            except FileExistsError:
                continue  # another start took it in this moment: it is older than we now
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(self.attempts)
            if self.hold is not None:
                self.hold.claim = (f"attempts/{number:04d}", text)
            return number

    def clear_markers(self) -> None:
        """Remove the markers of an earlier attempt: the run was started again."""
        for marker in (self.resubmit_needed, self.failed):
            marker.unlink(missing_ok=True)

    def is_gone(self) -> bool:
        """Whether it was removed or moved: its parent can be read and has no such name.

        Where a mount is away the parent cannot be read either.
        """
        try:
            return self.path not in self.path.parent.iterdir()
        except OSError:
            return False

    def overtaken_by(self, attempt: int) -> int | None:
        """Number of the newest writer, if that is another than ``attempt``.

        A supervisor's claim for a start without tasks is no writer's.
        """
        newer = [number for number in self.attempt_numbers() if number > attempt]
        writers = [n for n in newer if CLAIMED_BY_SUPERVISOR not in self._claim(n)]
        return writers[-1] if writers else None

    def assert_newest(self, attempt: int) -> None:
        """Give up if the folder is not this run's any more, or if a newer attempt writes.

        Raises:
            Displaced: the folder is gone, or another run's.
            Overtaken: naming the newer attempt and what it said of itself.
            OSError: storage does not answer.
        """
        if self.hold is not None:
            self.hold.follow()
        newest = self.overtaken_by(attempt)
        if newest is not None:
            raise Overtaken(
                f"attempt {attempt} of {self.name} was overtaken by attempt {newest} "
                f"({self._claim(newest) or '?'})",
                why="two jobs writing one run would damage it",
                fix="nothing: the newer attempt goes on",
            )

    def _claim(self, number: int) -> str:
        try:
            return (self.attempts / f"{number:04d}").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""


def read_json(path: Path) -> dict[str, Any]:
    """Object in a JSON file. Raises OSError or ValueError."""
    loaded = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no JSON object")
    return loaded


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


FIX_NO_RUNS = "start one with `mgpt4 submit`, or say where they are: --runs-dir, MGPT4_RUNS_DIR"


def told_no_runs(runs_dir: Path) -> str:
    """The error for a folder without runs: a mistyped folder differs from an empty one."""
    if runs_dir.is_dir():
        return f"no runs in {runs_dir}"
    return f"no runs: the folder {runs_dir} does not exist"


SWEEPS = ".sweeps"
"""Folder of the sweeps beside their runs."""


def list_sweeps(runs_dir: Path) -> list[str]:
    """Names of the sweeps under ``runs_dir``, in alphabetical order."""
    return sorted(file.parent.name for file in runs_dir.glob(f"{SWEEPS}/*/sweep.json"))


def list_runs(runs_dir: Path) -> list[RunDir]:
    """Runs under ``runs_dir``, newest first."""
    if not runs_dir.is_dir():
        return []
    runs = []
    for path in runs_dir.glob("*/run.json"):
        try:
            runs.append((path.parent.stat().st_mtime, path.parent))
        except OSError:
            continue  # removed in this moment
    return [RunDir(path) for _, path in sorted(runs, reverse=True)]
