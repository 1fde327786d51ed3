"""End this process after a time, with the stacks of its threads, even if one holds its lock.

The kernel's timers also run while a process is suspended, and would end it as it wakes. So there
are two stages: the first to expire starts the second, and a thread that wakes has that long to wind
the clock up again. No Python runs in between: the first stage's signal handler is alarm(2) of the C
library, which is called with the signal's number and takes it for seconds. The second is SIGALRM,
at which faulthandler writes the stacks before the signal's default action ends the process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import signal

FIRST_STAGE = signal.SIGSTKFLT
"""Unused since Linux exists. Its number, 16, is the second stage's length in seconds."""

_CLOCK_MONOTONIC = 1


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),  # 0 is SIGEV_SIGNAL
        ("rest", ctypes.c_byte * 48),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", ctypes.c_long * 2), ("seconds", ctypes.c_long), ("ns", ctypes.c_long))


class Alarm:
    """Winds up nothing by itself. One for a process: it takes over two signals.

    Args:
        fd: descriptor for the stacks.

    Raises:
        OSError: the kernel gives no timer.
    """

    def __init__(self, fd: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        # glibc before 2.34 keeps timers elsewhere.
        self._timers = libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1")
        self._timer = ctypes.c_void_p()
        event = _SigEvent(signal=FIRST_STAGE)
        if self._timers.timer_create(
            _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)
        ):
            raise OSError(ctypes.get_errno(), "timer_create")
        faulthandler.register(signal.SIGALRM, file=fd, chain=True)
        libc.signal(FIRST_STAGE, ctypes.cast(libc.alarm, ctypes.c_void_p))

    def wind_up(self, seconds: float) -> None:
        """Let the first stage expire in ``seconds``, and forget a second one that is running."""
        whole, rest = divmod(max(seconds, 0.001), 1.0)
        spec = _TimerSpec(seconds=int(whole), ns=int(rest * 1e9))
        self._timers.timer_settime(self._timer, 0, ctypes.byref(spec), None)
        signal.alarm(0)

    def close(self) -> None:
        """End nothing any more."""
        self._timers.timer_delete(self._timer)
        signal.alarm(0)
        faulthandler.unregister(signal.SIGALRM)
