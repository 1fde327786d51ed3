"""Checkpoints that cost the training loop one copy in memory and nothing else.

`AsyncSaver.save` copies the tensors into buffers that it keeps, and returns. A thread hashes,
writes and syncs. Two sets of buffers let a save begin while the one before it is still on its
way to the disk. No disk, however full or gone, raises in the loop: failures are collected,
reported and survived, and the last good checkpoint stays the last good checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt4_hpc.checkpoint.store import CheckpointStore, Files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveFailure:
    """A save that did not become durable, or whose bytes did not read back."""

    step: int
    error: Exception


@dataclass
class _Slot:
    """One set of CPU buffers, reused as long as names, shapes and dtypes stay the same."""

    buffers: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def fill(self, files: Files) -> list[torch.cuda.Event]:
        """Start copying; the copy is complete once every returned event has happened."""
        devices = set()
        buffers: dict[str, dict[str, Tensor]] = {}
        for entry, tensors in files.items():
            old = self.buffers.get(entry, {})
            buffers[entry] = {}
            for name, tensor in tensors.items():
                source = tensor.detach()
                buffer = old.get(name)
                if buffer is None or not _fits(buffer, source):
                    buffer = torch.empty(
                        source.shape, dtype=source.dtype, pin_memory=source.is_cuda
                    )
                # A copy from the GPU is queued behind the step that made the numbers and before
                # the step that changes them: the loop needs to wait for neither.
                buffer.copy_(source, non_blocking=source.is_cuda)
                buffers[entry][name] = buffer
                if source.is_cuda:
                    devices.add(source.device)
        self.buffers = buffers
        events = []
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            events.append(event)
        return events


@dataclass(frozen=True)
class _Job:
    step: int
    slot: _Slot
    copied: list[torch.cuda.Event]
    meta: Mapping[str, Any]
    asked_at: float
    keep: Collection[int]


class AsyncSaver:
    """Writes checkpoints in a background thread, for the one rank that writes.

    Args:
        store: where they go.
        guard: passed to every commit; raises when this attempt lost the run.
        on_durable: called with (step, folder, seconds from `save` until the bytes were on disk),
            in the thread, once they have been read back.
        on_failure: called with (step, error), in the thread.

    Attributes:
        last_durable_step: newest step that would survive a power cut and has been read back; None
            before the first.
        last_save_s: seconds from `save` to durable, of the last success.
        last_stall_s: seconds for which the last `save` held the caller up.
        failures: every save that failed, oldest first.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        guard: Callable[[], None] | None = None,
        on_durable: Callable[[int, Path, float], None] | None = None,
        on_failure: Callable[[int, Exception], None] | None = None,
    ) -> None:
        self.store = store
        self.last_durable_step: int | None = None
        self.last_save_s: float | None = None
        self.last_stall_s: float | None = None
        self.failures: list[SaveFailure] = []
        self._guard = guard
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._free = [_Slot(), _Slot()]
        self._jobs: list[_Job] = []
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        files: Files,
        meta: Mapping[str, Any],
        *,
        block: bool = True,
        keep: Collection[int] = (),
    ) -> bool:
        """Copy the state now; write it in the background, then prune.

        Args:
            step: optimizer steps done.
            files: entry to named tensors; they may change as soon as this returns.
            meta: JSON values; must not change afterwards.
            block: wait for a free buffer when two saves are still being written.
            keep: steps that the pruning behind this save leaves.

        Returns:
            Whether the state was taken; False if no buffer was free, or no memory for one.
        """
        asked_at = time.monotonic()
        with self._changed:
            if self._closed:
                raise RuntimeError("the saver is closed")
            if not self._changed.wait_for(lambda: bool(self._free), None if block else 0):
                self.last_stall_s = time.monotonic() - asked_at
                return False
            slot = self._free.pop()
        try:
            copied = slot.fill(files)
        except RuntimeError as error:  # no memory left for the buffers
            with self._changed:
                slot.buffers = {}
                self._free.append(slot)
                self._changed.notify_all()
            self._report_failure(step, error)
            return False
        with self._changed:
            self._jobs.append(_Job(step, slot, copied, dict(meta), asked_at, frozenset(keep)))
            if self._thread is None:
                # A daemon, because a write that hangs in a dead mount must not hold the process.
                self._thread = threading.Thread(
                    target=self._work, name="checkpoint-saver", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        self.last_stall_s = time.monotonic() - asked_at
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being written; False if that took more than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is pending and end the thread; False if that took too long."""
        done = self.wait(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if done and self._thread is not None:
            self._thread.join(timeout)
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
                if not self._jobs:
                    return
                job = self._jobs.pop(0)
                self._busy = True
            try:
                self._write(job)
            except Exception as error:  # noqa: BLE001 (whatever it is, training goes on)
                self._report_failure(job.step, error)
            finally:
                with self._changed:
                    self._free.append(job.slot)
                    self._busy = False
                    self._changed.notify_all()

    def _write(self, job: _Job) -> None:
        for event in job.copied:
            event.synchronize()
        path = self.store.commit(job.step, job.slot.buffers, job.meta, self._guard)
        seconds = time.monotonic() - job.asked_at
        # What does not read back is lost as surely as if it had never reached the disk.
        self.store.verify(path)
        with self._changed:
            self.last_durable_step = job.step
            self.last_save_s = seconds
            self._changed.notify_all()
        if self._on_durable is not None:
            _call(self._on_durable, job.step, path, seconds)
        self.store.prune(job.keep)

    def _report_failure(self, step: int, error: Exception) -> None:
        log.error("the checkpoint of step %d failed: %s", step, error)
        self.failures.append(SaveFailure(step, error))
        if self._on_failure is not None:
            _call(self._on_failure, step, error)


def _fits(buffer: Tensor, source: Tensor) -> bool:
    return (
        buffer.shape == source.shape
        and buffer.dtype == source.dtype
        and (not source.is_cuda or buffer.is_pinned())
    )


def _call(callback: Callable[..., None], *args: object) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("a checkpoint callback failed")
