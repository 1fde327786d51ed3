"""Places for half-written output: hidden beside the target, and removed once their writer died."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mgpt4_hpc.parent_death import lives

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
    own = f".{out.name}.{socket.gethostname()}.{os.getpid()}"
    paths = (out.parent / f"{own}.{number}{_SUFFIX}" for number in count())
    return next(path for path in paths if not path.exists())


def remove_leftovers(out: Path) -> None:
    """Remove what killed processes of this host left beside ``out``."""
    host = re.escape(socket.gethostname())
    ours = re.compile(rf"\.{re.escape(out.name)}\.{host}\.(\d+)\.\d+{re.escape(_SUFFIX)}")
    try:
        leftovers = [(entry, ours.fullmatch(entry.name)) for entry in out.parent.iterdir()]
    except OSError:
        return
    for entry, match in leftovers:
        if match is None or lives(int(match.group(1))):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
