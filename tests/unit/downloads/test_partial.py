"""Which process works on a partial file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.downloads.listing import RemoteFile
from mgpt4_hpc.downloads.partial import Partials, flat, own_name

FILE = RemoteFile("a/x[1].tar", "http://h/x.tar", 9)


def partial(folder: Path, file: RemoteFile, owner: str) -> Path:
    path = folder / f"{flat(file.name)}.{file.key}.{owner}"
    path.write_bytes(b"some")
    return path


def dead_process() -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    return f"{socket.gethostname()}.{int(done.stdout)}"


def test_that_of_a_dead_process_is_taken_over_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    partial(tmp_path, FILE, dead_process())
    ours = Partials(tmp_path).claim(FILE)
    assert ours is not None and ours.name.endswith(own_name()) and ours.read_bytes() == b"some"
    assert Partials(tmp_path).claim(FILE) == ours
    ours.rename(ours.with_name(ours.name.replace(own_name(), f"{socket.gethostname()}.1")))
    assert Partials(tmp_path).claim(FILE) is None


def test_that_of_another_machine_when_it_is_stale(tmp_path: Path) -> None:
    theirs = partial(tmp_path, FILE, "elsewhere.1")
    assert Partials(tmp_path).claim(FILE) is None
    os.utime(theirs, (0, 0))
    assert Partials(tmp_path).claim(FILE) is not None and not theirs.exists()


def test_other_contents_of_the_name_go_when_it_is_there(tmp_path: Path) -> None:
    older = RemoteFile(FILE.name, FILE.url, 8)
    partial(tmp_path, older, dead_process())
    busy = partial(tmp_path, older, f"{socket.gethostname()}.1")
    neighbour = partial(tmp_path, RemoteFile("a/x1.tar", FILE.url), dead_process())
    Partials(tmp_path).remove_others(FILE)
    assert sorted(tmp_path.iterdir()) == sorted([busy, neighbour])
