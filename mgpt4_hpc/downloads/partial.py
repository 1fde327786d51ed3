"""Partial files that several processes and machines take turns at, without locks.

A process owns a partial file once it has renamed it to its own name. It takes over and continues
that of a process that died, or one without writes for a while. If two processes write to one all
the same, the hash of the whole shows it.
"""

from __future__ import annotations

import glob
import os
import socket
from pathlib import Path

from mgpt4_hpc.downloads.listing import RemoteFile
from mgpt4_hpc.parent_death import lives

_STALE_S = 180.0
"""A partial file of another machine is taken over after this time without a write: longer than
the waits within one try."""


def own_name() -> str:
    """This process, unlike any other that works on the folder."""
    return f"{socket.gethostname()}.{os.getpid()}"


def flat(name: str) -> str:
    """A name without folders."""
    return name.replace("%", "%25").replace("/", "%2F")


class Partials:
    """The partial files of a folder, ``NAME.KEY.HOST.PID``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, file: RemoteFile) -> list[tuple[Path, str]]:
        """Each partial file of that content, and its owner."""
        start = f"{flat(file.name)}.{file.key}."
        partials = sorted(path for path in self._folder.iterdir() if path.name.startswith(start))
        return [(path, path.name.removeprefix(start)) for path in partials]

    def claim(self, file: RemoteFile) -> Path | None:
        """A partial file that is ours alone, old or new; None if another process works on it."""
        own = self._folder / f"{flat(file.name)}.{file.key}.{own_name()}"
        if own.exists():
            return own
        for path, owner in self.of(file):
            if not self._is_dead(path, owner):
                return None
            try:
                path.rename(own)
                os.utime(own)
            except FileNotFoundError:
                return None  # another one was quicker
            return own
        own.touch(exist_ok=False)
        others = [path for path, _ in self.of(file) if path != own]
        if others and min(others) < own:  # two began at once: one of them goes on
            own.unlink(missing_ok=True)
            return None
        return own

    def remove_others(self, file: RemoteFile) -> None:
        """Remove what is left of other contents of a file, once it is there."""
        for path in self._folder.glob(f"{glob.escape(flat(file.name))}.*"):
            name = path.name.removeprefix(f"{flat(file.name)}.")
            if name.count(".") >= 2 and self._is_dead(path, name.partition(".")[2]):
                path.unlink(missing_ok=True)

    def _is_dead(self, partial: Path, owner: str) -> bool:
        """Whether no process works on a partial file any more."""
        host, _, pid = owner.rpartition(".")
        if host == socket.gethostname():
            return not (pid.isdecimal() and lives(int(pid)))
        # By the file server's clock, which may differ from this machine's.
        probe = self._folder / f".clock.{own_name()}"
        try:
            probe.touch()
            return probe.stat().st_mtime - partial.stat().st_mtime > _STALE_S
        except FileNotFoundError:
            return False
