"""A folder of checkpoints in which every `step-N` is complete, whatever kills the writer.

The protocol, in the order of its operations:

1. write each file into `.tmp-N-UUID/`, fsync each, write and fsync `manifest.json`;
2. fsync `.tmp-N-UUID/`, so that its entries are on disk before its name becomes official;
3. ask the guard once more whether this attempt may still write, rename to `step-N`;
4. fsync the checkpoints' folder: only now the checkpoint is durable, and only now we say so.

Reading trusts hashes, not names: a `step-N` whose bytes are not the manifest's is moved aside as
`bad-step-N-ATTEMPT` and the one before it is taken. One that the disk does not give out may be
whole: it is passed over too, after half a minute, but stays where it is. Pruning renames first and
deletes later, so that a half-deleted checkpoint is never seen under an official name.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mgpt4_hpc.checkpoint.filesystem import FileSystem
from mgpt4_hpc.checkpoint.manifest import (
    MANIFEST_NAME,
    DamagedCheckpointError,
    FileRecord,
    Manifest,
    UnreadableCheckpointError,
    file_name,
    new_hash,
)
from mgpt4_hpc.checkpoint.reading import PIECE, STEP_NAME, read_checkpoint
from mgpt4_hpc.checkpoint.tensor_bytes import encode_tensors
from mgpt4_hpc.errors import CheckpointError, StorageTrouble
from mgpt4_hpc.retry import PAUSES_S

log = logging.getLogger(__name__)

Files = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: tensors on the CPU, and the meta that was committed with them."""

    step: int
    path: Path
    files: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run; one process writes, any number may read.

    Args:
        folder: RUN/checkpoints; made at the first commit.
        keep_last: how many of the newest verified checkpoints pruning leaves.
        keep_every_steps: checkpoints at multiples of this many steps are never pruned.
        attempt: number of the writing attempt, part of a quarantined folder's name.
        filesystem, sleep: replaced by tests only.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 3,
        keep_every_steps: int | None = None,
        attempt: int = 0,
        filesystem: FileSystem | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}, must be at least 1")
        if keep_every_steps is not None and keep_every_steps < 1:
            raise ValueError(f"keep_every_steps is {keep_every_steps}, must be at least 1 or None")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.keep_every_steps = keep_every_steps
        self.attempt = attempt
        self._fs = filesystem or FileSystem()
        self._sleep = sleep
        self._folder_is_durable = False
        self._verified: set[int] = set()
        self._passed_over: list[Path] = []

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, verified or not, oldest first."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        matches = (STEP_NAME.fullmatch(name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def commit(
        self,
        step: int,
        files: Files,
        meta: Mapping[str, Any],
        guard: Callable[[], None] | None = None,
    ) -> Path:
        """Write a checkpoint; on return it survives a power cut.

        Args:
            step: optimizer steps done.
            files: entry ("projector") to named tensors, on any device.
            meta: anything JSON can hold; belongs to the caller.
            guard: called before the first write and right before the rename; raises when this
                attempt lost the run.

        Returns:
            The checkpoint's folder. A verified one of the same step and content is left as it is.

        Raises:
            CheckpointError: disk full, folder read-only or gone, or a different verified
                checkpoint of that step exists. The earlier checkpoints are untouched.
            Exception: whatever the guard raises, unchanged.
        """
        target = self.path_of(step)
        tmp = self.folder / f".tmp-{step}-{uuid.uuid4().hex[:12]}"
        try:
            if guard is not None:
                guard()
            self._make_folder()
            self._fs.mkdir(tmp)
            try:
                manifest = self._write_files(tmp, step, files, meta)
                if guard is not None:
                    guard()
                self._leave_old_line()
                if self._already_there(target, manifest):
                    self._try_to_remove(tmp)
                else:
                    self._fs.rename(tmp, target)
            except Exception:
                # Above all on a full disk, where what we leave is what the next save lacks.
                self._try_to_remove(tmp)
                raise
            self._fs.fsync_dir(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"could not write the checkpoint of step {step}: {error.strerror or error}",
                why=f"the disk or folder {self.folder.resolve()} refused it; earlier checkpoints "
                "are intact",
                fix="check free space and quota (df, lfs quota) and that the folder is writable",
            ) from error
        return target

    def verify(self, path: Path) -> Manifest:
        """Read a checkpoint back and compare every byte's hash with its manifest.

        Raises:
            DamagedCheckpointError: something is missing or differs; the message says what.
            UnreadableCheckpointError: an I/O error, which may pass or stay.
            CheckpointError: it cannot be judged (newer format, no permission).
        """
        path = Path(path)
        manifest = read_checkpoint(path, keep=False)[0]
        if path == self.path_of(manifest.step):
            self._verified.add(manifest.step)
        return manifest

    def load_newest(
        self,
        on_bad: Callable[[Path, str], None] | None = None,
        foreign: Callable[[Mapping[str, Any]], str] = lambda meta: "",
    ) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are moved aside on the way.

        An I/O error may be a bad sector, or a file server that is away for a moment: reading is
        tried again for half a minute, once for all checkpoints. One that then still cannot be
        read is passed over and stays, as it may be whole, until a newer one is committed.

        Args:
            on_bad: called with each folder that was passed over (where it was) and its fault.
            foreign: of a checkpoint's meta: why it is not this run's, "" if it is. One that is
                not is moved aside as a damaged one is.

        Returns:
            The checkpoint, or None where there is none that verifies.

        Raises:
            StorageTrouble: none verifies, and I/O errors kept some from being read. A fresh start
                would throw their work away.
            CheckpointError: one cannot be judged. Silently taking an older one would lose work.
        """
        pauses = iter(PAUSES_S)
        unreadable: list[UnreadableCheckpointError] = []
        for step in reversed(self.steps()):
            path = self.path_of(step)
            try:
                manifest, files = self._read_patiently(path, pauses)
                if why := foreign(manifest.meta):
                    raise DamagedCheckpointError(why)
            except (DamagedCheckpointError, UnreadableCheckpointError) as error:
                reason = error.what
                if isinstance(error, UnreadableCheckpointError):
                    unreadable.append(error)
                    self._passed_over.append(path)
                else:
                    reason += self._move_aside(path)
                log.warning("checkpoint %s is passed over: %s", path, reason)
                if on_bad is not None:
                    on_bad(path, reason)
                continue
            self._verified.add(step)
            return Checkpoint(step, path, files, dict(manifest.meta))
        if unreadable:
            raise StorageTrouble(
                f"no checkpoint in {self.folder.resolve()} can be read: {unreadable[0].what}",
                why="they may be whole, so the run does not start from step 0 without them",
                fix="the job comes back by itself; if the disk has lost them, move their folders "
                "away to start from step 0",
            ) from unreadable[0]
        return None

    def _read_patiently(
        self, path: Path, pauses: Iterator[float]
    ) -> tuple[Manifest, dict[str, dict[str, Tensor]]]:
        while True:
            try:
                return read_checkpoint(path, keep=True)
            except UnreadableCheckpointError as error:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                log.warning("%s; again in %.0f s", error.what, pause_s)
                self._sleep(pause_s)

    def _move_aside(self, path: Path) -> str:
        try:
            self._quarantine(path)
        except OSError as trouble:
            return f" (and it could not be moved aside: {trouble})"
        return ""

    def prune(self, keep: Collection[int] = ()) -> list[int]:
        """Delete what retention does not ask for, once something newer has been read back.

        Kept are the newest `keep_last` that verify, everything newer than these, multiples of
        `keep_every_steps`, and the steps in `keep`.

        Returns:
            The steps deleted.

        Raises:
            CheckpointError: the folder refused.
        """
        steps = self.steps()
        good = 0
        oldest_kept = None
        for step in reversed(steps):
            if self._is_verified(step):
                good += 1
                if good == self.keep_last:
                    oldest_kept = step
                    break
        if oldest_kept is None:
            return []
        every = self.keep_every_steps
        victims = [
            step
            for step in steps
            if step < oldest_kept and step not in keep and not (every and step % every == 0)
        ]
        if victims:
            try:
                self._delete(victims)
            except OSError as error:
                raise CheckpointError(
                    f"could not delete old checkpoints in {self.folder.resolve()}: "
                    f"{error.strerror or error}",
                    fix="check that the folder is writable",
                ) from error
        return victims

    def clean_stale(self) -> list[Path]:
        """Remove what dead attempts left half-written. Only at an attempt's start.

        Should one of them still live (a node cut off from the network), its commit now fails.

        Raises:
            CheckpointError: the folder refused.
        """
        try:
            stale = sorted(self.folder.glob(".tmp-*"))
            if stale:
                # One of them may be a checkpoint that was being pruned. Its new name must be on
                # disk before its files go, or a power cut brings back the old name, half empty.
                self._fs.fsync_dir(self.folder)
            for path in stale:
                self._remove_tree(path)
        except OSError as error:
            raise CheckpointError(
                f"could not remove left-over files in {self.folder.resolve()}: "
                f"{error.strerror or error}",
                fix="check that the folder is writable",
            ) from error
        return stale

    def _make_folder(self) -> None:
        if self._folder_is_durable:
            return
        missing = [self.folder]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            if not folder.exists():
                self._fs.mkdir(folder)
            # Also where it exists: the process that made it may have died before this.
            self._fs.fsync_dir(folder.parent)
        self._folder_is_durable = True

    def _write_files(self, tmp: Path, step: int, files: Files, meta: Mapping[str, Any]) -> Manifest:
        records: dict[str, FileRecord] = {}
        for entry, tensors in sorted(files.items()):
            on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            records[entry] = self._write_file(tmp / file_name(entry), encode_tensors(on_cpu))
        manifest = Manifest(step, records, meta)
        self._write_file(tmp / MANIFEST_NAME, [memoryview(manifest.to_bytes())])
        self._fs.fsync_dir(tmp)
        return manifest

    def _write_file(self, path: Path, pieces: Iterable[memoryview]) -> FileRecord:
        digest = new_hash()
        size = 0
        fd = self._fs.create(path)
        try:
            for view in pieces:
                for start in range(0, view.nbytes, PIECE):
                    piece = view[start : start + PIECE]
                    self._fs.write(fd, piece)
                    digest.update(piece)
                    size += piece.nbytes
            self._fs.fsync(fd)
        finally:
            self._fs.close(fd)
        return FileRecord(size, digest.hexdigest())

    def _leave_old_line(self) -> None:
        """Move aside the checkpoints that I/O errors made unreadable: the run trained without them.

        On other ranks or with other settings the run's bits differ from theirs, so the next start
        must not restore one, even if it is readable again.
        """
        for path in self._passed_over:
            if os.path.lexists(path):
                log.warning("checkpoint %s is moved aside: the run went on without it", path)
                self._quarantine(path)
        self._passed_over = []

    def _already_there(self, target: Path, manifest: Manifest) -> bool:
        if not os.path.lexists(target):
            return False
        try:
            existing = self.verify(target)
        except (DamagedCheckpointError, UnreadableCheckpointError) as error:
            # Also what may be whole makes room: the same state is here, and can be read.
            log.warning("checkpoint %s makes room: %s", target, error.what)
            self._quarantine(target)
            return False
        if existing.content == manifest.content and existing.step == manifest.step:
            return True
        raise CheckpointError(
            f"a different checkpoint of step {manifest.step} exists already: {target.resolve()}",
            why="a checkpoint that verifies is never overwritten",
            fix="move that folder aside if its state is not wanted",
        )

    def _quarantine(self, path: Path) -> None:
        # No fsync: should the rename be lost, the next reader finds the damage again.
        target = path.with_name(f"bad-{path.name}-{self.attempt:04d}")
        number = 1
        while os.path.lexists(target):
            number += 1
            target = path.with_name(f"bad-{path.name}-{self.attempt:04d}.{number}")
        self._fs.rename(path, target)
        self._verified.discard(int(path.name.removeprefix("step-")))

    def _is_verified(self, step: int) -> bool:
        if step not in self._verified:
            try:
                self.verify(self.path_of(step))
            except CheckpointError as error:
                log.warning("checkpoint of step %d does not verify: %s", step, error.what)
        return step in self._verified

    def _delete(self, steps: list[int]) -> None:
        doomed = []
        for step in steps:
            doomed.append(self.folder / f".tmp-pruned-{step}-{uuid.uuid4().hex[:12]}")
            self._fs.rename(self.path_of(step), doomed[-1])
            self._verified.discard(step)
        self._fs.fsync_dir(self.folder)
        for path in doomed:
            self._remove_tree(path)

    def _remove_tree(self, path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            self._fs.unlink(path)
            return
        for child in sorted(path.iterdir()):
            self._remove_tree(child)
        self._fs.rmdir(path)

    def _try_to_remove(self, path: Path) -> None:
        try:
            if os.path.lexists(path):
                self._remove_tree(path)
        except OSError:
            log.warning("left-over %s could not be removed now", path)
