"""Processes that must not outlive the process that started them, and which of a host live."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent's thread ends, however it ends.

    Args:
        parent: id of the parent; if that is not our parent (any more), this process ends now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request: no signal will come
        os._exit(1)


def lives(pid: int) -> bool:
    """Whether a process of this host has that id, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
