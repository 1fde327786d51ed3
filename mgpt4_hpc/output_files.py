"""May a command write here? One rule for every output file, asked before the work begins.

A file is made new, or takes the place of an earlier one of the same kind that this package made.
Anything else that has the name stays: a mistyped ``--out`` must not cost a user a file. Folders
are not made either, as a mistyped one would go unnoticed. Where two would write at once, a lock.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mgpt4_hpc.errors import ConfigError

MADE_BY = "mgpt4-hpc"
"""Stands at the beginning of the pictures and pages that are made here, to know them again."""

PNG_INFO = {"Software": MADE_BY}
"""Text chunks of the pictures."""

GENERATOR = f'<meta name="generator" content="{MADE_BY}">'
"""In the head of the pages."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PAGE = b"<!doctype html>"
_HEAD_BYTES = 2048


def check_folder(folder: Path) -> None:
    """Refuse an output's folder that is not there. Raises ConfigError with the command to run."""
    if not folder.expanduser().is_dir():
        raise ConfigError(
            f"the folder {folder} does not exist", fix=f"mkdir -p {shlex.quote(str(folder))}"
        )


def check_output(out: Path, *, kind: str, is_own: Callable[[Path], bool] | None = None) -> None:
    """Refuse an output file that must not be written: ``check_folder`` and ``check_replaced``."""
    check_folder(out.parent)
    check_replaced(out, kind=kind, is_own=is_own)


def check_replaced(out: Path, *, kind: str, is_own: Callable[[Path], bool] | None = None) -> None:
    """Refuse to write over a file that is not known to be an earlier output.

    Args:
        out: the file.
        kind: what is to be written, as "a shard index".
        is_own: whether the regular file that has the name is an earlier one of that kind; without
            it none is replaced.

    Raises:
        ConfigError: if something else has the name.
    """
    out = out.expanduser()
    if not os.path.lexists(out):  # a dangling link has an owner, too
        return
    if is_own is None:
        what = f"{out} exists already"
    elif out.is_file() and is_own(out):
        return
    else:
        what = f"{out} exists and is not {kind} that mgpt4 wrote"
    raise ConfigError(what, why="it would be lost", fix="choose another name, or move it away")


def is_own_png(path: Path) -> bool:
    """Whether a file is a picture that was made here."""
    head = _head(path)
    return head.startswith(_PNG) and MADE_BY.encode() in head


def is_own_page(path: Path) -> bool:
    """Whether a file is an HTML page that was made here."""
    head = _head(path)
    return head.startswith(_PAGE) and GENERATOR.encode() in head


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file, where the file system has locks: Lustre without ``-o flock`` has none.

    Args:
        file: unlocked again when it is closed.
        wait: until the lock is free.

    Returns:
        False if another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def remove_older(path: Path, age_s: float) -> None:
    """Remove a file that was not written for ``age_s`` seconds, as the lock of a dead process."""
    try:
        if time.time() - path.stat().st_mtime > age_s:
            path.unlink()
    except OSError:
        pass  # there is none, or another process was quicker


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""
