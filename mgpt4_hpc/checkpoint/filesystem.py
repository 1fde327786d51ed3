"""The few file operations on which a checkpoint's safety rests, in one replaceable object.

The store changes the disk through a `FileSystem` and through nothing else. So a test can record
every operation, replay any part of them as a disk after a power cut, or let one fail as a full
disk would. Reading needs no such seam.
"""

from __future__ import annotations

import os
from pathlib import Path

from mgpt4_hpc.disk import fsync_folder


class FileSystem:
    """Plain POSIX calls. Each raises OSError as the kernel reports it."""

    def mkdir(self, path: Path) -> None:
        """Make one folder; its parent must exist, itself must not."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Make a new, empty file and return its descriptor; an existing one is an error."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, fd: int, data: memoryview) -> None:
        """Append all of `data` (unsigned bytes), however many calls the kernel needs."""
        while data.nbytes:
            data = data[os.write(fd, data) :]

    def fsync(self, fd: int) -> None:
        """Return once what was written to `fd` would survive a power cut."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor; NFS reports a full quota here."""
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Move a folder or file atomically. A non-empty target folder is an error."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove one file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove one empty folder."""
        path.rmdir()

    def fsync_dir(self, path: Path) -> None:
        """Return once the entries of a folder would survive a power cut."""
        fsync_folder(path)
