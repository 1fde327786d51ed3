"""DataLoader, tamed: positions in, batches out in order, and an end that is an end.

Workers are forked: the tokenizer and the mapped index come along as they are, and a spawned worker
would import torch again for many seconds. Fork does not mix with a CUDA context that the child
uses, or with locks held by other threads, so ``start()`` before either exists; the workers
themselves never touch CUDA.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mgpt4_hpc.data.batching.workers import (
    StillWaiting,
    kill_workers,
    next_within,
    watch_quietly,
)
from mgpt4_hpc.data.reading.forked_process import init_worker
from mgpt4_hpc.errors import DataError, StorageTrouble, WorkerDied

LOOK_EVERY_S = 5.0
"""How often it is asked, while a batch does not come, whether it is still wanted."""

PREFETCH = 2
"""Batches that each worker prepares ahead."""
SHARED_MEMORY = Path("/dev/shm")
"""Where torch puts what workers hand over."""
MORE_SHARED_MEMORY = (
    "have the site enlarge /dev/shm (mount -o remount,size=...), in a container with --shm-size or "
    "--ipc=host"
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Maker(Protocol[T_co]):
    """Turns a list of positions into a batch; workers have a copy each."""

    def __call__(self, positions: list[int], /) -> T_co:
        """The batch of these positions."""

    def close(self) -> None:
        """Close what this process opened."""


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker, without the worker's traceback glued to it."""

    error: DataError | StorageTrouble


def _share(batch: Any) -> None:
    """Move a batch's tensors to shared memory here, where a failure is an answer.

    The queue would do it in a thread and lose its errors: the trainer would wait for ever.
    """
    try:
        for field in fields(batch):
            if isinstance(value := getattr(batch, field.name), torch.Tensor):
                value.share_memory_()
    except (RuntimeError, OSError) as error:
        free_mib = shutil.disk_usage(SHARED_MEMORY).free / 2**20
        raise WorkerDied(
            f"a data worker has no shared memory for a batch: {error}",
            why=f"{SHARED_MEMORY} has {free_mib:.1f} MiB free",
            fix=f"{MORE_SHARED_MEMORY}, or lower data.num_workers (0 needs none)",
        ) from error


class _MicroBatches(Dataset[Any]):
    """Map-style: its "index" is a list of positions."""

    def __init__(self, maker: Maker[Any]) -> None:
        self._maker = maker

    def __getitem__(self, positions: list[int]) -> Any:
        try:
            batch = self._maker(positions)
            if get_worker_info() is not None and is_dataclass(batch):
                _share(batch)
            return batch
        except (DataError, StorageTrouble) as error:
            return _Failure(error)


class _Sampler:
    """Hands DataLoader the lists of positions."""

    def __init__(self, lists: Callable[[], Iterator[list[int]]]) -> None:
        self._lists = lists

    def __iter__(self) -> Iterator[list[int]]:
        return self._lists()


class BatchStream(Generic[T]):
    """Batches in the order of their positions, from DataLoader's workers or from this process.

    Args:
        maker: turns a list of positions into a batch.
        lists: a new pass over lists of positions, perhaps endless.
        num_workers, prefetch, pin_memory: see ``StepLoader``.
        again: keep the workers for another pass (see ``rewind``).
        give_up: asked while a batch from the workers does not come.
    """

    def __init__(
        self,
        maker: Maker[T],
        lists: Callable[[], Iterator[list[int]]],
        num_workers: int,
        prefetch: int,
        pin_memory: bool | None,
        *,
        again: bool = False,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        forked: dict[str, Any] = {}
        if num_workers:
            forked = {
                "multiprocessing_context": "fork",
                "worker_init_fn": init_worker(),
                "prefetch_factor": prefetch,
                "persistent_workers": again,
            }
        self._loader: DataLoader[Any] = DataLoader(
            _MicroBatches(maker),
            sampler=_Sampler(lists),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            **forked,
        )
        self._maker = maker
        self._give_up = give_up
        self._batches: Iterator[T | _Failure] | None = None
        self._untouched = False
        self._closed = False

    def start(self) -> None:
        """Fork the workers now and let them work ahead."""
        if self._batches is None and not self._closed:
            self._batches = iter(self._loader)
            watch_quietly(self._batches)
            self._untouched = True

    def rewind(self) -> None:
        """Begin another pass, in the same workers."""
        if self._batches is not None and not self._untouched:
            self._batches = iter(self._loader)
            watch_quietly(self._batches)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next batch.

        Raises:
            DataError, StorageTrouble: whatever its worker met, or that this died.
            StillWaiting: it did not come, and ``give_up`` said to wait no longer.
        """
        self.start()
        if self._batches is None:
            raise RuntimeError("the loader is closed")
        self._untouched = False
        try:
            batch = self._wait(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            # OSError, EOFError: a batch's memory is fetched from the worker, which is gone.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise WorkerDied(
                f"a data worker died: {error}",
                why="killed for memory, most often, or /dev/shm is full",
                fix="ask for more memory per task, or lower data.num_workers",
            ) from error
        if isinstance(batch, _Failure):
            raise batch.error
        return batch

    def _wait(self, batches: Iterator[T | _Failure]) -> T | _Failure:
        while True:
            try:
                batch: T | _Failure = next_within(batches, LOOK_EVERY_S)
            except StillWaiting:
                if self._give_up():
                    raise
            else:
                return batch

    def close(self) -> None:
        """End the workers at once, even those that hang in a read. Safe to call twice."""
        self._closed = True
        if self._batches is not None:
            kill_workers(self._batches)
            self._batches = None
        self._maker.close()


def _as_it_is(batch: Any) -> Any:
    return batch
