"""TensorBoard event files that lose no point to a disk that refuses for a while.

TensorBoard's own `EventFileWriter` ends its thread at the first OSError and drops what waited for
it. Here what was not written stays in memory and goes into the next file that the disk takes.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Seconds after which events reach the file at the latest."""
REOPEN_S = 30.0
"""Seconds between attempts to write again after the disk refused."""
_MOST = 10_000
"""Events kept in memory; a refusal that lasts longer costs the oldest."""
_PATIENCE_S = 5.0
"""Longest wait for the disk: a mount may hang."""


class EventFiles(threading.Thread):
    """Writes events in the background, in their order. No call raises for the disk's sake.

    Args:
        folder: where the files go; made where missing.
        first: begin the first file that can be written.
    """

    def __init__(self, folder: Path, first: Sequence[Event] = ()) -> None:
        super().__init__(name="tensorboard", daemon=True)
        self._folder = Path(folder)
        self._first = _framed(first)
        self._file: _EventFile | None = None
        self._retry_at = 0.0
        self._refusing = False
        # Shared with the callers, under the condition:
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._asked = self._answered = 0
        self._closing = False
        self.start()
        self.flush()

    def add(self, event: Event) -> None:
        """Write ``event`` within `FLUSH_S` seconds, or as soon as the disk takes it."""
        record = _framed([event])
        with self._changed:
            if len(self._waiting) >= _MOST:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(record)

    def flush(self, timeout_s: float = _PATIENCE_S) -> None:
        """Return when all events are in the file, the disk refused, or it took too long."""
        with self._changed:
            self._asked += 1
            asked = self._asked
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._answered >= asked or not self.is_alive(), timeout_s
            )

    def close(self, timeout_s: float = _PATIENCE_S) -> None:
        """Try once more to write what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join(timeout_s)

    def run(self) -> None:
        """Write at each request, and every `FLUSH_S` seconds; called by the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._asked > self._answered, timeout=FLUSH_S
                )
                closing, asked = self._closing, self._asked
                batch = list(self._waiting)
                self._waiting.clear()
            may_try = closing or time.monotonic() >= self._retry_at
            written = may_try and self._write(b"".join(batch))
            with self._changed:
                if not written:
                    self._put_back(batch)
                self._answered = asked
                self._changed.notify_all()
            if closing:
                break
        if not written and batch:
            log.warning("the last %d TensorBoard events were lost", len(batch))
        if self._file is not None:
            self._file.close()

    def _put_back(self, batch: list[bytes]) -> None:
        self._waiting.extendleft(reversed(batch))
        while len(self._waiting) > _MOST:
            self._waiting.popleft()
            self._dropped += 1

    def _write(self, data: bytes) -> bool:
        try:
            if self._file is None:
                self._file = _EventFile(self._folder, self._first)
                self._first = b""
            self._file.append(data)
        except OSError as error:
            if not self._refusing:
                log.warning("TensorBoard events cannot be written to %s: %s", self._folder, error)
            self._refusing = True
            self._retry_at = time.monotonic() + REOPEN_S
            if self._file is not None:
                # After a mount came back the old descriptor is stale.
                self._file.close()
                self._file = None
            return False
        if self._refusing:
            log.warning(
                "TensorBoard events are written again%s",
                f"; {self._dropped} were lost" if self._dropped else "",
            )
        self._refusing = False
        return True


class _EventFile:
    """One event file; what a failed write left of its data is cut off again.

    Raises:
        OSError: the disk refused; of a constructor that raises no file stays behind.
    """

    def __init__(self, folder: Path, first: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _wait_for_a_later_name(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        path = folder / name
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._size = 0
        try:
            self.append(_framed([Event(wall_time=time.time(), file_version="brain.Event:2")]))
            self.append(first)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, data: bytes) -> None:
        """Write all of ``data`` or, where the disk allows that much, nothing of it."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                pass  # a torn record: TensorBoard reads this file up to it
            raise
        self._size += len(data)

    def close(self) -> None:
        """Let go of the file."""
        try:
            os.close(self._fd)
        except OSError as error:
            log.warning("the last TensorBoard events may be lost: %s", error)


def _framed(events: Sequence[Event]) -> bytes:
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _wait_for_a_later_name(folder: Path) -> None:
    # TensorBoard reads event files in the order of their names, which begin with whole seconds.
    # An attempt that starts in the second of its predecessor would be read before it, and its
    # purge would then hide nothing.
    stamps = [_stamp(path.name) for path in folder.glob("events.out.tfevents.*")]
    newest = max(stamps, default=0)
    give_up = time.monotonic() + 3
    while int(time.time()) <= newest:
        if time.monotonic() > give_up:
            log.warning("clocks differ: %s holds events from the future", folder)
            return
        time.sleep(0.05)


def _stamp(name: str) -> int:
    digits = name.split(".")[3]
    return int(digits) if digits.isdigit() else 0
