"""Processes of this machine that belong to a run, distinguished from others with a reused id."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgpt4_hpc.identity import RUN_ID_VARIABLE
from mgpt4_hpc.run_dir import RunDir

_CONTROLLER = "mgpt4_hpc.launch.local"


def is_here(hostname: str) -> bool:
    """Whether that host is this one; an unknown host is taken for this one."""
    return not hostname or hostname == socket.gethostname()


def is_controller(run: RunDir, pid: str) -> bool:
    """Whether process ``pid`` is the local controller of this very run."""
    words = _words(pid, "cmdline")
    # `python -m mgpt4_hpc.launch.local FOLDER`; the folder may be written through another link.
    if _CONTROLLER not in words[:-1]:
        return False
    # Its folder may have been moved, and another run may be there now.
    known = [word for word in _words(pid, "environ") if word.startswith(f"{RUN_ID_VARIABLE}=")]
    if known:
        return known[0] == f"{RUN_ID_VARIABLE}={run.run_id}"
    try:
        return Path(words[-1]).samefile(run.slurm)
    except OSError:
        return False


def exists(pid: int) -> bool:
    """Whether a process of that id lives here (a zombie does not)."""
    return bool(_words(str(pid), "cmdline"))


def signal_controller(run: RunDir, pid: str, number: signal.Signals) -> bool:
    """Send a signal to the run's controller; False if there is none (any more)."""
    with _held(pid) as handle:
        # Held first, checked then: the id cannot pass on to another process in between.
        if handle is None or not is_controller(run, pid):
            return False
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def _held(pid: str) -> Iterator[int | None]:
    try:
        handle = os.pidfd_open(int(pid))
    except (OSError, ValueError):
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _words(pid: str, kind: str) -> list[str]:
    """The words of ``/proc/PID/cmdline`` or ``environ``; none if there is no such process."""
    if not pid.isdigit():
        return []
    try:
        data = Path(f"/proc/{pid}/{kind}").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
