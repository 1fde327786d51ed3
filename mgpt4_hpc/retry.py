"""Shared storage that stumbles: try again for half a minute before calling it a failure.

A server that fails over, a stale handle, a mount that comes back late: the same read works a moment
later. What still fails then is reported as trouble of the storage, so that the job comes back,
instead of as a missing file, after which no caller would try again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mgpt4_hpc.errors import MgptError, StorageTrouble

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between the tries; half a minute in all."""

TRANSIENT = frozenset(
    {
        errno.ESTALE, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EROFS,
        errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET,
        errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)  # fmt: skip
"""What NFS, Lustre and GPFS say while a server or the network is away. Not ENOSPC: that stays."""

T = TypeVar("T")


def retry_storage(
    action: Callable[[], T],
    *,
    vanished: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
    pauses_s: Sequence[float] = PAUSES_S,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """What ``action`` returns, tried again while storage stumbles.

    Args:
        action: may be done twice; raises OSError, or a MgptError that came from one.
        vanished: whether something is missing now that was there before: then any failure is
            the storage's.
        say: called with a sentence before each new try.
        pauses_s: seconds between the tries.
        sleep: waits.

    Raises:
        StorageTrouble: it still fails after the last try.
        OSError, MgptError: what ``action`` raised, where trying again is pointless.
    """
    for pause_s in (*pauses_s, None):
        try:
            return action()
        except (OSError, MgptError) as error:
            if isinstance(error, StorageTrouble) or not (is_transient(error) or vanished()):
                raise
            text = error.what if isinstance(error, MgptError) else str(error)
            if pause_s is None:
                raise StorageTrouble(
                    f"shared storage fails again and again: {text}",
                    why="it worked before, or other machines see it, so another start may do",
                    fix="the job comes back by itself; see `mgpt4 doctor` if it keeps happening",
                ) from error
            say(f"shared storage stumbles ({text}); again in {pause_s:.0f} s")
            sleep(pause_s)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is of the kind that passes."""
    return any(isinstance(link, OSError) and link.errno in TRANSIENT for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__
