"""Which run a folder holds, whatever the folder is called and wherever it lies.

Names, paths, job ids and attempt numbers are used again; folders are moved, copied and deleted.
A run therefore has an identity: a UUID in ``run.json``, which its checkpoints, claims, ledger lines
and jobs repeat. A process that works on a run holds the run's folder open and writes through that
handle, so that it cannot write into another folder that has taken the path.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import Displaced
from mgpt4_hpc.text_files import parse_json

RUN_ID_VARIABLE = "MGPT4_RUN_ID"
"""In a job's environment: identity of the run that the job was submitted for."""

_EARLIER = uuid.UUID("6f3c5bb4-3f0e-4a6c-9a55-0d7c1a1f6f11")
"""Namespace of the identities of runs made before there were identities; any fixed UUID does."""


def new_identity() -> str:
    """An identity that no other run has."""
    return str(uuid.uuid4())


def identity_in(run_json: Mapping[str, Any]) -> str:
    """Identity of the run that a ``run.json`` describes.

    A run that was made before there were identities gets one from what never changes in it, so
    that all processes agree on it without asking each other.
    """
    known = run_json.get("id")
    if isinstance(known, str) and known:
        return known
    fixed = [str(run_json.get(key)) for key in ("name", "created", "config_digest")]
    return str(uuid.uuid5(_EARLIER, "\n".join(fixed)))


def identity_at(folder: Path) -> str:
    """Identity of the run in a folder. Raises OSError or ValueError."""
    record = parse_json((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{folder / 'run.json'} holds no JSON object")
    return identity_in(record)


def user_name() -> str:
    """Name of this process's user; the number where the system has no name for it."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in the passwd database: KeyError until Python 3.12
        return str(os.getuid())


class Hold:
    """A run's folder, held open by a process that works on the run.

    Attributes:
        path: where the run was when the process began.
        run_id: the run's identity.
        root: the folder by its handle, for every read and write; it stays valid when the folder
            is moved within its file system.
        claim: relative path and text of the attempt that this process claimed, None before.

    Args:
        path: the folder.
        expected: identity of the run that must be there; "" takes what is there.

    Raises:
        Displaced: the folder holds another run.
        OSError, ValueError: the folder or its run.json cannot be read.
    """

    def __init__(self, path: Path, expected: str = "") -> None:
        self.path = path
        self.claim: tuple[str, str] | None = None
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._device = os.fstat(self._fd).st_dev
        self.root = Path(f"/proc/self/fd/{self._fd}")
        self.run_id = expected
        identity = identity_at(self.root)
        if expected and identity != expected:
            raise self._another_run(identity)
        self.run_id = identity

    @property
    def place(self) -> Path:
        """Where the folder is now, as far as this machine knows."""
        return Path(os.path.realpath(self.root))

    @property
    def is_moved(self) -> bool:
        """Whether the run is no longer where it was."""
        return not self._is_ours(self.path)

    def follow(self) -> None:
        """Point the handle to the run: at its path, else wherever the folder was moved to.

        Raises:
            Displaced: the folder is gone, or another run's.
            OSError: storage does not answer.
        """
        if self._is_ours(self.path):
            # Also where it is the same folder: a mount may lie over it that was not there before.
            fresh = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.dup2(fresh, self._fd, inheritable=False)
            os.close(fresh)
            return
        try:
            identity = identity_at(self.root)
        except ValueError as error:
            raise OSError(errno.EIO, str(error)) from error
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or not self._is_removed():
                raise
            raise self._gone() from error
        if identity != self.run_id:
            raise self._another_run(identity)

    def _is_ours(self, folder: Path) -> bool:
        try:
            if identity_at(folder) != self.run_id:
                return False
            if self.claim is None:
                return True
            # A backup from before this attempt does not know of it.
            name, text = self.claim
            return (folder / name).read_text(encoding="utf-8") == text
        except (OSError, ValueError):
            return False

    def _is_removed(self) -> bool:
        """Whether the storage is there, and our folder is not; not where a mount is away."""
        try:
            if (self.path / "run.json").exists():
                return True  # and is not ours, as was found before
            return self.path.parent.stat().st_dev == self._device
        except OSError:
            return False

    def _gone(self) -> Displaced:
        return Displaced(
            f"the folder {self.path} of this run is gone",
            why="nothing that this job computes could be saved",
            fix="if it was moved to another file system: `mgpt4 resume` it there; if it was "
            "deleted: nothing, this job ends",
        )

    def _another_run(self, identity: str) -> Displaced:
        return Displaced(
            f"{self.path} holds another run (identity {identity}; this job's is {self.run_id})",
            why="a job must not write into the folder of a run that is not its own",
            fix="nothing for the run that is there; if this job's run was moved, `mgpt4 resume` "
            "it in its new place",
        )
