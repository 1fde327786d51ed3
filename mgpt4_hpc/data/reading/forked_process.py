"""What a process that reads data does first: it leaves signals to its trainer and dies with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import torch

from mgpt4_hpc.parent_death import die_with
from mgpt4_hpc.stop_signals import STOP_SIGNALS

_IGNORED = tuple(signal.Signals[f"SIG{name}"] for name in STOP_SIGNALS)


def init_worker() -> Callable[[int], None]:
    """A ``worker_init_fn`` for workers of the calling process."""
    return _WorkerInit(os.getpid())


class _WorkerInit:
    def __init__(self, parent: int) -> None:
        self._parent = parent

    def __call__(self, worker_id: int) -> None:
        # Slurm signals every process of a step. Stopping is the trainer's decision: a worker that
        # ended by itself would take the batches with it that the last step still needs.
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with(self._parent)
        # One thread a worker; and the tokenizers library would warn of each fork otherwise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(1)
