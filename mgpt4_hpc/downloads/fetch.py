"""A listing's files into a folder: each whole and verified, or absent.

A folder under way::

    OUT/
      a.tar                              a file; it appears when it is whole and its hash is right
      .fetch/source.json                 what is fetched, fixed by the first start
      .fetch/done/a.tar.json             size, time and key of a file that was verified
      .fetch/partial/a.tar.KEY.HOST.PID  what one process has of it up to now (see ``partial``)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mgpt4_hpc.disk import fsync_folder
from mgpt4_hpc.downloads.listing import CONNECTIONS, WORK_FOLDER, Listing, RemoteFile
from mgpt4_hpc.downloads.partial import Partials, flat, own_name
from mgpt4_hpc.downloads.transport import (
    PAUSES_S,
    OtherContent,
    is_another_content,
    is_fatal,
    reason_of,
)
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import size_text
from mgpt4_hpc.text_files import parse_json

_FORMAT = "mgpt4-fetch-1"
_POLL_S = 2.0
_MOST_OTHERS = 3
"""Times that a file may come with another content than was announced."""
_PIECE = 8 * 2**20
_WRITTEN_AT_ONCE = 2**20
"""What a kill costs of each connection; the library's default is ten times as much."""
_GOT, _BUSY, _STOPPED = "got", "busy", "stopped"


@dataclass
class FetchReport:
    """What a folder holds after a fetch; names are relative to it.

    Attributes:
        source, revision: of the listing.
        num_asked: files that were to be there.
        num_files, num_bytes: that are there now.
        fetched: of these, fetched by this call.
        unverified: of these, those without a hash: only their size was compared.
        missing: those that are not there, with the reason.
    """

    out: str
    source: str
    revision: str
    num_asked: int
    num_files: int = 0
    num_bytes: int = 0
    fetched: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


class Fetch:
    """One folder into which a listing is fetched, new or resumed.

    Any number of processes, on any number of machines, may work on one folder: each file is
    fetched by one of them.

    Args:
        listing: what to fetch; of a repository the commit that the folder was begun with.
        out: the folder; its parent must be there.

    Raises:
        DataError: if the folder holds something else.
    """

    def __init__(self, listing: Listing, out: Path) -> None:
        self.listing = listing
        self.out = out.absolute()
        self._work = self.out / WORK_FOLDER
        self._partials = Partials(self._work / "partial")
        self._stop = threading.Event()
        begun = begun_with(out)
        if begun is not None and begun != (listing.source, listing.revision):
            raise DataError(
                f"{out} was begun with {' at '.join(begun)}, this is {listing.source} at "
                f"{listing.revision}",
                fix="give another --out",
            )
        try:
            for name in ("partial", "done"):
                (self._work / name).mkdir(parents=True, exist_ok=True)
            if begun is None:
                listed = {"source": listing.source, "revision": listing.revision}
                _write_json(self._work / "source.json", {"format": _FORMAT, **listed})
        except OSError as error:
            raise DataError(f"cannot use the folder {out}: {error.strerror}") from error

    def run(
        self,
        files: Sequence[RemoteFile] | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> FetchReport:
        """Fetch what is missing; return when all is there or nothing more can be had.

        Args:
            files: those of one part; all by default.
            on_progress: called with (bytes there, bytes in all) now and then.

        Raises:
            DataError: if the disk cannot hold what is missing.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        constants.DOWNLOAD_CHUNK_SIZE = _WRITTEN_AT_ONCE
        files = self.listing.files if files is None else files
        facts = (str(self.out), self.listing.source, self.listing.revision, len(files))
        report = FetchReport(*facts)
        counter = _Counter(files, on_progress)
        todo = [file for file in files if not self._is_there(file, counter)]
        self._require_space(todo)
        try:
            while todo:
                with ThreadPoolExecutor(CONNECTIONS) as pool:
                    ends = dict(zip(todo, pool.map(self._fetcher(counter), todo), strict=True))
                report.fetched += [file.name for file, end in ends.items() if end == _GOT]
                report.missing |= {
                    file.name: end for file, end in ends.items() if end not in (_GOT, _BUSY)
                }
                busy = [file for file, end in ends.items() if end == _BUSY]
                todo = [file for file in busy if not self._is_there(file, counter)]
                if todo:  # wait for who has them, or for his end
                    time.sleep(_POLL_S)
        except BaseException:
            self._stop.set()
            raise
        for file in files:
            if file.name not in report.missing:
                report.num_files += 1
                report.num_bytes += (self.out / file.name).stat().st_size
                report.unverified += [] if file.hash else [file.name]
        return report

    def _is_there(self, file: RemoteFile, counter: _Counter) -> bool:
        """Whether a file is whole; one that was not seen before is read once and remembered."""
        path = self.out / file.name
        try:
            stat = path.stat()
        except OSError:
            return False
        state = {"key": file.key, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if _read_json(self._note(file)) != state:
            if file.size not in (None, stat.st_size) or not file.hash:
                return False
            if _digest(path, file) != file.hash:
                return False
            _write_json(self._note(file), state)
        counter.at(file, stat.st_size)
        return True

    def _note(self, file: RemoteFile) -> Path:
        return self._work / "done" / f"{flat(file.name)}.json"

    def _require_space(self, todo: Sequence[RemoteFile]) -> None:
        needed = sum(file.size or 0 for file in todo)
        needed -= sum(path.stat().st_size for file in todo for path, _ in self._partials.of(file))
        free = shutil.disk_usage(self.out).free
        if needed > free:
            raise DataError(
                f"{size_text(needed)} are still to come, {self.out} has {size_text(free)} free",
                fix="make room, give --out elsewhere, or take fewer files with --files",
            )

    def _fetcher(self, counter: _Counter) -> Callable[[RemoteFile], str]:
        return lambda file: self._fetch(file, counter)

    def _fetch(self, file: RemoteFile, counter: _Counter) -> str:
        """How it ended: got, busy (another process does it), stopped, or why it cannot be had."""
        pauses, others = iter(PAUSES_S), 0
        while not self._stop.is_set():
            partial, before = None, 0
            try:
                partial = self._partials.claim(file)
                if partial is None:
                    return _BUSY
                if self._is_there(file, counter):  # another process finished it just now
                    partial.unlink()
                    return _BUSY
                before = partial.stat().st_size
                self._fetch_into(partial, file, counter)
                return _GOT
            except Exception as error:  # noqa: BLE001 - the library's transport raises its own
                reason = reason_of(error)
                if is_fatal(error):
                    return reason
                if is_another_content(error) and partial is not None:
                    partial.unlink(missing_ok=True)
                    counter.at(file, 0)
                    others += 1
                elif partial is not None and _size(partial) > before:
                    pauses = iter(PAUSES_S)  # something came
            pause_s = next(pauses, None)
            if pause_s is None or others == _MOST_OTHERS:
                return reason
            self._stop.wait(pause_s)
        return _STOPPED

    def _fetch_into(self, partial: Path, file: RemoteFile, counter: _Counter) -> None:
        """Complete the partial file and give it its name. Raises OtherContent, and much more."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        with partial.open("r+b") as raw:
            sink = _Sink(raw, file, counter, self._stop)
            # Without hash and ETag a change of the file cannot be seen.
            is_known = bool(file.hash or file.etag)
            if sink.size and (not is_known or (file.size is not None and sink.size > file.size)):
                sink.seek(0)
                sink.truncate(0)
            headers = {"Accept-Encoding": "identity"}
            if file.hash:
                headers |= build_hf_headers()
            elif sink.size:
                headers["If-Range"] = file.etag
            http_get(
                file.url,
                sink,
                resume_size=sink.size,
                headers=headers,
                expected_size=file.size,
            )
            raw.flush()
            os.fsync(raw.fileno())
        if file.size not in (None, sink.size):
            raise OtherContent(f"it has {sink.size} bytes, {file.size} were announced")
        if file.hash and sink.digest() != file.hash:
            raise OtherContent("what came has another hash than the file should have")
        target = self.out / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        stat = partial.stat()
        partial.replace(target)
        fsync_folder(target.parent)
        state = {"key": file.key, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        _write_json(self._note(file), state)
        self._partials.remove_others(file)


def begun_with(out: Path) -> tuple[str, str] | None:
    """Source and revision of a folder that was begun; None for a new one.

    Raises:
        DataError: if it is no folder, or its note cannot be read.
    """
    path = out / WORK_FOLDER / "source.json"
    if not path.exists():
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is no folder", fix="give another --out")
        return None
    begun = _read_json(path)
    if begun is None or begun.get("format") != _FORMAT:
        raise DataError(
            f"{path} cannot be read", fix="remove it: the files are then verified again"
        )
    return str(begun["source"]), str(begun["revision"])


class _Stopped(Exception):
    """The caller wants to stop; partial files are resumed later."""


class _Counter:
    """Bytes that are there of each file, counted by several threads."""

    def __init__(
        self, files: Sequence[RemoteFile], on_progress: Callable[[int, int], None] | None
    ) -> None:
        self._total = sum(file.size or 0 for file in files)
        self._sizes: dict[str, int] = {}
        self._sum = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def at(self, file: RemoteFile, size: int) -> None:
        """Note the bytes that a file has now."""
        with self._lock:
            self._sum += size - self._sizes.get(file.name, 0)
            self._sizes[file.name] = size
            if self._on_progress is not None:
                self._on_progress(self._sum, max(self._total, self._sum))


class _Sink:
    """A file that hashes what is written to it, for ``http_get``; begins with what is there."""

    def __init__(
        self, raw: BinaryIO, file: RemoteFile, counter: _Counter, stop: threading.Event
    ) -> None:
        self._raw = raw
        self._file = file
        self._counter = counter
        self._stop = stop
        self._state = _new_hash(file)
        self.size = 0
        while data := raw.read(_PIECE):
            self._take(data)

    def write(self, data: bytes) -> int:
        """Append."""
        if self._stop.is_set():
            raise _Stopped
        self._raw.write(data)
        self._take(data)
        return len(data)

    def tell(self) -> int:
        """Bytes up to now."""
        return self.size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go back to the begin: the server sends the whole file again."""
        if offset or whence:
            raise OSError(errno.ESPIPE, "a download continues or starts from 0, nothing else")
        self._raw.seek(0)
        self.size, self._state = 0, _new_hash(self._file)
        return 0

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off here."""
        return self._raw.truncate(size)

    def digest(self) -> str:
        """Hash of all bytes, as ``RemoteFile.hash``."""
        return _hash_text(self._file, self._state)

    def _take(self, data: bytes) -> None:
        self._state.update(data)
        self.size += len(data)
        self._counter.at(self._file, self.size)


def _new_hash(file: RemoteFile) -> Any:
    if file.hash.startswith("git:"):
        # Git hashes a file with this in front of it.
        return hashlib.sha1(b"blob %d\0" % (file.size or 0), usedforsecurity=False)
    return hashlib.sha256()


def _hash_text(file: RemoteFile, state: Any) -> str:
    return f"{file.hash.partition(':')[0]}:{state.hexdigest()}"


def _digest(path: Path, file: RemoteFile) -> str:
    with path.open("rb", buffering=0) as raw:
        return _hash_text(file, hashlib.file_digest(raw, lambda: _new_hash(file)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.{own_name()}")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)
