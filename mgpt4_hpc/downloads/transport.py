"""How requests fail: which errors pass, and what is said of them."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from mgpt4_hpc.errors import DataError

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Before the next try of what failed; within a try the hub's library waits as the server asks
(Retry-After), and goes on where a connection broke."""

_FATAL_STATUS = {401, 403, 404, 410, 451}
T = TypeVar("T")


class OtherContent(Exception):
    """What came is not the file that was announced; the message says how it differs."""


def ask_patiently(ask: Callable[[], T], what: str) -> T:
    """What ``ask`` returns, tried again for some seconds. Raises DataError that names ``what``."""
    for pause_s in (*PAUSES_S[:4], None):
        try:
            return ask()
        except Exception as error:
            if is_fatal(error) or pause_s is None:
                raise DataError(
                    f"{what} cannot be listed: {reason_of(error)}", fix=_mend(error)
                ) from error
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def is_fatal(error: BaseException) -> bool:
    """Whether another try is pointless: the disk is full, or the server says no."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return True
    return _status(error) in _FATAL_STATUS or isinstance(error, (ValueError, TypeError))


def is_another_content(error: BaseException) -> bool:
    """Whether the partial file cannot be resumed: the download must start from its first byte."""
    # The library's check of the size raises an OSError of its own, without a number.
    own_check = type(error) is OSError and error.errno is None
    return isinstance(error, OtherContent) or own_check or _status(error) == 416


def reason_of(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if (code := _status(error)) is not None:
        return f"HTTP {code}"
    name = "" if isinstance(error, OtherContent) else f"{type(error).__name__}: "
    return f"{name}{error}".splitlines()[0][:200]


def _mend(error: BaseException) -> str:
    if _status(error) in (401, 403, 404):
        return (
            "see that the name is right; for a private or gated one, accept its terms on the hub "
            "and set HF_TOKEN"
        )
    return "see that this machine reaches the network, then give the same command again"
