"""Functions run at the same time, each in its own process, without starting Python anew."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.runs import patience


def in_processes(actions: Sequence[Callable[[], Any]], timeout_s: float = 30.0) -> list[Any]:
    """Fork one process per action; their results, or the exceptions that they raised.

    A process that has not answered within ``timeout_s``, or longer on a busy machine, is killed
    and fails the test.
    """
    timeout_s *= patience()
    children = [_fork(action) for action in actions]
    deadline = time.monotonic() + timeout_s
    results: list[Any] = []
    try:
        for number, (_, reader) in enumerate(children):
            ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"process {number} gave no answer within {timeout_s} s"
            with os.fdopen(os.dup(reader), "rb") as stream:
                results.append(pickle.loads(stream.read()))
    finally:
        for pid, reader in children:
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return results


def _fork(action: Callable[[], Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    try:
        try:
            answer = pickle.dumps(action())
        except Exception as error:  # noqa: BLE001 - the parent gets it
            answer = pickle.dumps(error)
        with os.fdopen(writer, "wb") as stream:
            stream.write(answer)
        # Killed by the parent once all have answered: a peer may still need what this one holds.
        signal.pause()
    finally:
        os._exit(1)
