"""What must survive a power cut."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 16
"""A sync is a round trip to a file server."""


def fsync_folder(folder: Path) -> None:
    """Return once the entries of a folder would survive a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE filesystems know no fsync of a folder. They order metadata on their
        # server, and failing here would mean that nothing is ever written there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path, *, deep: bool = True) -> None:
    """Return once a folder's files, with ``deep`` all below it, would survive a power cut.

    Raises:
        OSError: if one cannot be synced.
    """
    paths = list(folder.rglob("*") if deep else folder.iterdir())
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fsync_file, (path for path in paths if path.is_file())))
        list(pool.map(fsync_folder, (path for path in paths if deep and path.is_dir())))
    fsync_folder(folder)


def fsync_file(path: Path) -> None:
    """Return once the content of a file would survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
