"""Data workers that neither outlive their trainer nor hold it up."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

from torch.utils.data._utils import signal_handling

_living: weakref.WeakSet[Any] = weakref.WeakSet()


def watch_quietly(iterator: Iterator[Any]) -> None:
    """Have a worker's death surface in ``next()`` alone.

    DataLoader also raises from a SIGCHLD handler, that is anywhere in the main thread: in the
    middle of a checkpoint, say. ``next()`` finds dead workers by itself. Also ends the workers
    before the interpreter waits for them at its exit.
    """
    it: Any = iterator
    if getattr(it, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(it))
        it._worker_pids_set = False
        _living.add(it)
        # Handlers run in reverse order: this one before multiprocessing's, which sends SIGTERM
        # and waits, and before DataLoader's own.
        atexit.unregister(_kill_living)
        atexit.register(_kill_living)


def _kill_living() -> None:
    for iterator in list(_living):
        kill_workers(iterator)


class StillWaiting(Exception):
    """A batch is not there yet: its worker waits for storage, most often."""


def next_within(iterator: Iterator[Any], seconds: float) -> Any:
    """The next item of a DataLoader's iterator.

    DataLoader has a time-out too, but counts it also where the workers are made ready for another
    pass, of which it would leave half a state behind.

    Raises:
        StillWaiting: it did not come in that time; the next call continues to wait for it.
    """
    it: Any = iterator
    it._timeout = seconds
    try:
        return next(it)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader timed out"):
            raise
        pin_thread = getattr(it, "_pin_memory_thread", None)
        if pin_thread is not None and not pin_thread.is_alive():
            raise RuntimeError("the thread that pins memory ended") from error
        raise StillWaiting from None
    finally:
        it._timeout = 0


def kill_workers(iterator: Iterator[Any]) -> None:
    """End a DataLoader iterator's workers with SIGKILL and reap them.

    DataLoader's own shutdown waits for workers to come back from their reads, and for locks that
    a killed worker may hold; a worker that hangs on a dead file server kept it for minutes. Its
    internals are touched here only. An iterator without workers is left alone.
    """
    workers = getattr(iterator, "_workers", None)
    if not workers:
        return
    it: Any = iterator
    it._shutdown = True  # its __del__ must not start the slow shutdown
    _living.discard(it)
    pin_thread = getattr(it, "_pin_memory_thread", None)
    if pin_thread is not None:
        it._pin_memory_thread_done_event.set()
        it._worker_result_queue.put((None, None))  # wakes it, while the workers' lock is sound
        pin_thread.join(timeout=1.0)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    if pin_thread is not None:
        pin_thread.join(timeout=10.0)
    for queue in (*it._index_queues, it._worker_result_queue):
        with contextlib.suppress(OSError, ValueError):
            queue.cancel_join_thread()
            queue.close()
