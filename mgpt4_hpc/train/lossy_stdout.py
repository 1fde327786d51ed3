"""Standard output that may be lost: a full disk under a job's log must not end the training."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TextIO


class LossyStream:
    """A text stream that never fails to write: what the disk or a dead srun refuses is lost.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible; returns its length."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Bring out what was written, if that is possible."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate_lost_output() -> None:
    """Let this process print to where nothing can be written; what counts is in the ledger too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, LossyStream):
            setattr(sys, name, LossyStream(stream))
