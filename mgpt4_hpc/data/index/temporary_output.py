"""Places for half-written output: hidden beside the target, and removed once their writer died."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """An empty hidden folder on the file system of ``out``, from where things are renamed to it.

    What processes of this host left there that live no more is removed first; this process's
    folder is removed in the end. Whether another host still writes cannot be seen from here.
    """
    remove_leftovers(out)
    folder = scratch_path(out)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_path(out: Path) -> Path:
    """A hidden name beside ``out`` that names its writer; no other process makes it."""
    number = 0
    while True:
        name = f".{out.name}.{socket.gethostname()}.{os.getpid()}.{number}{_SUFFIX}"
        path = out.parent / name
        if not path.exists():
            return path
        number += 1


def remove_leftovers(out: Path) -> None:
    """Remove what killed processes of this host left beside ``out``."""
    host = re.escape(socket.gethostname())
    ours = re.compile(rf"\.{re.escape(out.name)}\.{host}\.(\d+)\.\d+{re.escape(_SUFFIX)}")
    try:
        leftovers = [(entry, ours.fullmatch(entry.name)) for entry in out.parent.iterdir()]
    except OSError:
        return
    for entry, match in leftovers:
        if match is None or _lives(int(match.group(1))):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
