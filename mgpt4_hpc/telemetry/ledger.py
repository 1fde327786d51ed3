"""The run's ledger: what happened in each attempt, one append-only file and one writer each.

Several hosts appending to one file would overwrite each other on NFS, hence one file per attempt.
An observer outside (the batch script after a kill -9) writes beside it, into
`supervisor-NNNN.jsonl`, and a rank that hangs into `hang-NNNN-rank-RRRR.jsonl`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.telemetry.attempts import Attempt, Record, summarise
from mgpt4_hpc.telemetry.event_kinds import SYNCED, Kind

log = logging.getLogger(__name__)

_FILE = re.compile(r"(attempt|supervisor|hang)-(\d{4,})(?:-rank-\d{4,})?\.jsonl")
_PROGRESS, _LOSS = f'"kind": "{Kind.STEPS}"'.encode(), b'"loss"'
_OF_CHANGES = tuple(f'"{k}"'.encode() for k in (Kind.CHANGED, Kind.RESTORE, Kind.FIRST_STEP))
_PENDING = 1000
"""Lines kept in memory while the disk refuses them."""


class Ledger:
    """Appends lines for one attempt. Never raises for the disk's sake; safe in any thread.

    Lines that the disk refuses are kept (the newest thousand) and written with the next event.

    Args:
        folder: RUN/ledger; made where missing.
        attempt: this attempt's number; no other attempt has it.
        run_id: identity of the run, part of each line.
        clock: unix time in seconds; replaced by tests.
    """

    def __init__(
        self,
        folder: Path,
        attempt: int,
        *,
        run_id: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(folder) / f"attempt-{attempt:04d}.jsonl"
        self.attempt = attempt
        self._run = {"run": run_id} if run_id else {}
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._fd: int | None = None
        self._failed = False

    def event(self, kind: Kind, **fields: object) -> None:
        """Append one line; on return a kind in `SYNCED` survives a power cut.

        Args:
            kind: event_kinds.py lists its fields.
            fields: JSON values; anything else is written as its `str`.
        """
        record = {"t": self._clock(), "kind": str(kind), **self._run, **fields}
        line = json.dumps(record, default=str).encode() + b"\n"
        with self._lock:
            self._pending = [*self._pending, line][-_PENDING:]
            fd = self._flush()
        if fd is not None and kind in SYNCED:
            # Outside the lock: the saver's thread syncs, and the loop must not wait for it.
            try:
                os.fsync(fd)
            except OSError as error:
                self._warn(error)

    def close(self) -> None:
        """Write what is pending and close the file."""
        with self._lock:
            self._flush()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _flush(self) -> int | None:
        try:
            if self._fd is None:
                self._fd = _open(self.path)
            while self._pending:
                _write(self._fd, self._pending[0])
                del self._pending[0]
        except OSError as error:
            self._warn(error)
            self._drop_descriptor()
            return None
        self._failed = False
        return self._fd

    def _drop_descriptor(self) -> None:
        # The next event opens the file again: after a mount came back the old descriptor is stale.
        if self._fd is not None:
            try:
                os.close(self._fd)
            except OSError:
                pass
            self._fd = None

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            log.warning("the ledger %s cannot be written: %s", self.path, error)
        self._failed = True


def append_hang(folder: Path, attempt: int, rank: int, **fields: object) -> Path:
    """Write down that a rank hangs: any rank may be the one that still can.

    Args:
        folder: RUN/ledger.
        attempt: the attempt it belongs to.
        rank: the one that writes.
        fields: event_kinds.py has those of `hang`.

    Returns:
        The file.

    Raises:
        OSError: the folder refused.
    """
    path = Path(folder) / f"hang-{attempt:04d}-rank-{rank:04d}.jsonl"
    return _append(path, kind=Kind.HANG, rank=rank, **fields)


def append_supervisor_note(folder: Path, attempt: int, **fields: object) -> Path:
    """Write down what is known from outside about an attempt that could not say it itself.

    Args:
        folder: RUN/ledger.
        attempt: the attempt it is about.
        fields: `cause`, `exit_code`, `step` (the last that is known), `reason`: whichever is known.

    Returns:
        The file.

    Raises:
        OSError: the folder refused.
    """
    return _append(Path(folder) / f"supervisor-{attempt:04d}.jsonl", **fields)


def _append(path: Path, **fields: object) -> Path:
    fd = _open(path)
    try:
        _write(fd, json.dumps({"t": time.time(), **fields}, default=str).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    return path


def read_ledgers(folder: Path) -> list[Attempt]:
    """Summaries of all attempts of a run, in order.

    Torn, empty and foreign lines are passed over, as a killed writer leaves them.

    Args:
        folder: RUN/ledger; a missing one is a run without attempts.
    """
    records: dict[int, list[Record]] = {}
    notes: dict[int, list[Record]] = {}
    folder = Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in sorted(names):
        match = _FILE.fullmatch(name)
        if match:
            into = notes if match[1] == "supervisor" else records
            into.setdefault(int(match[2]), []).extend(summary_records(_lines(folder / name)))
    numbers = sorted(records.keys() | notes.keys())
    return summarise([(n, records.get(n, []), notes.get(n, [])) for n in numbers])


@dataclass
class Change:
    """A setting that is not what it was.

    Attributes:
        attempt: the one that noted it.
        step: the last one with the old value.
        what: key, old value and new value, as a sentence.
    """

    attempt: int
    step: int
    what: str

    def __str__(self) -> str:
        return f"attempt {self.attempt}, step {self.step}: {self.what}"


def read_changes(folder: Path) -> list[Change]:
    """Each change of a setting that the ledgers note, oldest first."""
    changes: list[Change] = []
    begun = 0  # changes before this one have their step
    for path in sorted(Path(folder).glob("attempt-*.jsonl")):
        attempt = int(path.stem.removeprefix("attempt-"))
        lines = [line for line in _lines(path) if any(kind in line for kind in _OF_CHANGES)]
        for record in _parse(lines):
            kind, step = record.get("kind"), record.get("step")
            if kind == Kind.CHANGED and isinstance(record.get("what"), list):
                changes += [Change(attempt, step or 0, str(what)) for what in record["what"]]
                begun = begun if step is None else len(changes)
            elif kind in (Kind.RESTORE, Kind.FIRST_STEP) and isinstance(step, int):
                # A change at a start is noted before its checkpoint is read.
                for change in changes[begun:]:
                    change.step = step - (kind == Kind.FIRST_STEP)
                begun = len(changes)
    return changes


def read_records(path: Path) -> list[Record]:
    """The lines of one ledger file that are whole, as dictionaries with at least a time."""
    return _parse(_lines(path))


def summary_records(lines: Sequence[bytes]) -> list[Record]:
    """The records that a summary needs: of the progress lines only the newest.

    They are nearly all of a ledger, and each holds what those before it added up to. The newest
    with a loss is kept as well.
    """
    progress = [number for number, line in enumerate(lines) if _PROGRESS in line]
    kept = set()
    for wanted in (_PROGRESS, _LOSS):
        for number in reversed(progress):
            if wanted in lines[number] and _parse([lines[number]]):  # the last may be torn
                kept.add(number)
                break
    passed_over = set(progress) - kept
    return _parse([line for number, line in enumerate(lines) if number not in passed_over])


def _lines(path: Path) -> list[bytes]:
    try:
        return Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []


def _parse(lines: Sequence[bytes]) -> list[Record]:
    """The lines that are whole; many at once, which takes a third of the time."""
    try:
        parsed = json.loads(b"[" + b",".join(line for line in lines if line) + b"]")
    except (ValueError, RecursionError):
        if len(lines) <= 1:
            return []
        middle = len(lines) // 2
        return _parse(lines[:middle]) + _parse(lines[middle:])
    return [
        record
        for record in parsed
        if isinstance(record, dict) and isinstance(record.get("t"), (int, float))
    ]


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            # A torn line must not swallow the one that follows.
            os.write(fd, b"\n")
    except OSError:
        os.close(fd)
        raise
    return fd


def _write(fd: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(fd, view) :]
