"""BLIP's caption lists, one JSON array of ``{"url", "caption"}``, into parquet files.

The lists have up to 15 GB and img2dataset wants tables. The array is parsed as it is read, so
memory does not depend on its length.
"""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from mgpt4_hpc.data.index.caption import is_visible
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.sampling.order import keyed_words
from mgpt4_hpc.disk import fsync_folder
from mgpt4_hpc.errors import DataError

ROWS_PER_FILE = 1_000_000
"""A whole number of img2dataset's shards of 10,000, as a shard never spans two files."""
BAD_ROWS_FILE = "bad_rows.jsonl"
REPORT_FILE = "convert.json"

_GROUP_ROWS = 65_536
_GROUP_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_DRAWN_AT_ONCE = 4096
_REPORT_EVERY = 4096
_SHOWN = 20
_EXCERPT = 120
_NOT_UTF8 = "\ufdd0"
"""Stands for bytes that are no UTF-8: a code point that no text may contain."""

codecs.register_error("mgpt4-mark", lambda error: (_NOT_UTF8, error.end))  # type: ignore[attr-defined]


@dataclass
class ConvertReport:
    """What ``convert_captions`` did; num_rows = num_written + num_left_out + num_bad.

    Attributes:
        files: parquet files, relative to ``out``.
        num_rows: elements of the array.
        num_left_out: good rows that the fraction did not draw.
        reasons: how many bad rows for each reason.
        bad_rows: the first of them: row number (from 0), reason, how it begins. All are in
            ``bad_rows.jsonl``.
    """

    source: str
    out: str
    fraction: float
    seed: int
    files: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_written: int = 0
    num_left_out: int = 0
    num_bad: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    bad_rows: list[dict[str, Any]] = field(default_factory=list)


def convert_captions(
    src: Path,
    out: Path,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    rows_per_file: int = ROWS_PER_FILE,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Write the rows of a JSON array into ``out/00000.parquet`` and so on: url, caption.

    Args:
        src: one array of ``{"url", "caption"}``; other keys are dropped.
        out: folder; it must not exist or be empty. It appears complete or not at all.
        fraction: share of the rows to take. Which ones depends on the seed and the row's number
            alone, and a smaller fraction takes a part of what a larger one takes.
        seed: of that choice.
        rows_per_file: the last file may have fewer.
        on_progress: called with (bytes read, bytes in all) now and then.

    Rows that cannot be used are counted and listed, and stop nothing.

    Raises:
        DataError: if the file cannot be read, is no JSON array, is cut short, or has no usable row.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1")
    require_packages("converting", "ijson", "pyarrow")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder", fix="choose another folder or remove it")
    report = ConvertReport(str(src), str(out), fraction, seed)
    try:
        with src.open("rb") as file:
            _require_array(file, src)
            with scratch_beside(out) as holder:
                folder = holder / "rows"
                folder.mkdir()
                _convert(file, folder, report, rows_per_file, on_progress)
                folder.rename(out)
                fsync_folder(out.parent)
    except OSError as error:
        other = f"{error.filename}: " if error.filename and Path(error.filename) != src else ""
        raise DataError(f"cannot convert {src}: {other}{error.strerror or error}") from error
    return report


class Draw:
    """Whether a row belongs to a fraction: a pure function of (seed, row number)."""

    def __init__(self, fraction: float, seed: int) -> None:
        self._limit = None if fraction >= 1.0 else int(fraction * 2**64)
        self._seed = seed
        self._chunk = -1
        self._taken: list[bool] = []

    def __contains__(self, row: int) -> bool:
        if self._limit is None:
            return True
        chunk, place = divmod(row, _DRAWN_AT_ONCE)
        if chunk != self._chunk:
            words = keyed_words(_DRAWN_AT_ONCE, self._seed, "convert", chunk)
            self._chunk, self._taken = chunk, [word < self._limit for word in words.tolist()]
        return self._taken[place]


def _convert(
    file: IO[bytes],
    folder: Path,
    report: ConvertReport,
    rows_per_file: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    total = os.fstat(file.fileno()).st_size
    text = _Utf8File(file)
    drawn = Draw(report.fraction, report.seed)
    reasons: Counter[str] = Counter()
    with (
        _Table(folder, rows_per_file) as table,
        (folder / BAD_ROWS_FILE).open("w", encoding="utf-8") as bad,
    ):
        for row, entry in enumerate(_entries(text, report.source)):
            report.num_rows += 1
            if reason := _fault(entry):
                bad_row = {"row": row, "reason": reason, "begins": ascii(entry)[:_EXCERPT]}
                bad.write(json.dumps(bad_row) + "\n")
                if reasons.total() < _SHOWN:
                    report.bad_rows.append(bad_row)
                reasons[reason] += 1
            elif row in drawn:
                table.add(entry["url"].strip(), entry["caption"])
            else:
                report.num_left_out += 1
            if on_progress is not None and row % _REPORT_EVERY == 0:
                on_progress(text.num_read, total)
        _sync(bad)
    if on_progress is not None:
        on_progress(total, total)
    report.files, report.num_written = table.files, table.num_rows
    report.reasons, report.num_bad = dict(reasons.most_common()), reasons.total()
    if not report.num_written:
        why = "; ".join(f"{count} rows: {reason}" for reason, count in reasons.most_common(5))
        raise DataError(
            f"{report.source}: none of its {report.num_rows} rows can be written",
            why=why or "the array is empty, or the fraction draws none of it",
            fix='it must be one array of {"url": ..., "caption": ...}',
        )
    if not report.num_bad:
        (folder / BAD_ROWS_FILE).unlink()
    with (folder / REPORT_FILE).open("w", encoding="utf-8") as told_file:
        json.dump(report.__dict__, told_file, indent=2)
        _sync(told_file)
    fsync_folder(folder)


def array_entries(path: Path) -> Iterator[tuple[Any, int]]:
    """Each element of a JSON array, and how many bytes were read up to it.

    Raises:
        DataError: if it is no array, or is cut short.
    """
    require_packages("reading a JSON array", "ijson")
    with path.open("rb") as file:
        _require_array(file, path)
        text = _Utf8File(file)
        for entry in _entries(text, str(path)):
            yield entry, text.num_read


def _entries(text: _Utf8File, source: str) -> Iterator[Any]:
    import ijson

    row = 0
    try:
        for entry in ijson.items(text, "item", buf_size=_READ_BYTES, use_float=True):
            row += 1
            yield entry
    except ijson.JSONError as error:
        cause = " ".join(str(error).split()[:6])
        raise DataError(
            f"{source} is no whole JSON array: {cause}, after row {row}, "
            f"before byte {text.num_read}",
            why="it was cut short or damaged; rows behind that place cannot be found",
            fix="download it again and compare its size",
        ) from None


def _fault(entry: Any) -> str:
    """Why a row cannot be used; empty if it can."""
    if not isinstance(entry, dict):
        return "it is no object"
    url, caption = entry.get("url"), entry.get("caption")
    if not isinstance(url, str) or not url.strip():
        return "it has no url"
    if not isinstance(caption, str):
        return "it has no caption"
    if not is_visible(caption):
        return "its caption is empty"
    if not url.strip().lower().startswith(("http://", "https://")):
        return "its url is none of http or https"
    if not encodes(url + caption):
        return "its text is not UTF-8"
    return ""


def encodes(text: str) -> bool:
    """Whether a text is UTF-8: neither half a surrogate pair nor bytes that were none."""
    if _NOT_UTF8 in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, written as \ud83d
        return False
    return True


class _Utf8File:
    """Bytes of a file, with what is no UTF-8 replaced: it spoils its row, not the whole list."""

    def __init__(self, file: IO[bytes]) -> None:
        self.num_read = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("mgpt4-mark")

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes of the file, a little more where something was replaced."""
        if size == 0:
            return b""
        while True:
            data = self._file.read(size)
            self.num_read += len(data)
            text = self._decoder.decode(data, final=not data)
            if text or not data:
                return text.encode()


class _Table:
    """Rows into parquet files of equal length, in groups that bound memory."""

    def __init__(self, folder: Path, rows_per_file: int) -> None:
        self.files: list[str] = []
        self.num_rows = 0
        self._folder = folder
        self._rows_per_file = rows_per_file
        self._urls: list[str] = []
        self._captions: list[str] = []
        self._bytes = 0
        self._rows_in_file = 0
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def add(self, url: str, caption: str) -> None:
        """Add a row; rows are written in groups."""
        self._urls.append(url)
        self._captions.append(caption)
        self._bytes += len(url) + len(caption)
        self.num_rows += 1
        self._rows_in_file += 1
        if len(self._urls) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()
        if self._rows_in_file >= self._rows_per_file:
            self._finish_file()

    def _write_group(self) -> None:
        import pyarrow
        from pyarrow import parquet

        if not self._urls:
            return
        schema = pyarrow.schema([("url", pyarrow.string()), ("caption", pyarrow.string())])
        if self._writer is None:
            name = f"{len(self.files):05d}.parquet"
            self.files.append(name)
            self._file = (self._folder / name).open("wb")
            # Addresses and captions hardly repeat: a dictionary would cost time and memory.
            self._writer = parquet.ParquetWriter(self._file, schema, use_dictionary=False)
        columns = [pyarrow.array(self._urls), pyarrow.array(self._captions)]
        self._writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
        self._urls, self._captions, self._bytes = [], [], 0

    def _finish_file(self) -> None:
        self._write_group()
        if self._writer is not None and self._file is not None:
            self._writer.close()
            _sync(self._file)
            self._file.close()
        self._writer, self._file, self._rows_in_file = None, None, 0

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._finish_file()
        elif self._file is not None:
            self._file.close()


def require_packages(what: str, *names: str) -> None:
    """Raises DataError, naming the extra, unless ``what`` finds the packages that it needs."""
    for name in names:
        if find_spec(name) is None:
            raise DataError(
                f"{what} needs {name}, which is not installed", fix="pip install 'mgpt4-hpc[data]'"
            )


def _require_array(file: IO[bytes], src: Path) -> None:
    head = file.read(4096)
    file.seek(0)
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"["):
        return
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{src} is a git-lfs pointer, not the list", fix="run `git lfs pull`")
    raise DataError(
        f"{src} is no JSON array: it begins with {head[:20].decode(errors='replace')!a}",
        fix='it must be one array of {"url": ..., "caption": ...}, as BLIP publishes its lists',
    )


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
