"""Millions of captions by url or key, on disk: sorted hashes that are mapped, and one file of text.

A row takes 24 bytes of memory while the table is made, twice that while the rows are sorted
(measured peak for 15 million rows: 1.06 GiB), and none when the table is used, because the arrays
are mapped. Hashes have 128 bits, so that
two of 15 million names have the same one with a chance of 1 in 10^24.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.index.caption import BYTE_ORDER_MARK, is_visible
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.sources.convert import array_entries, encodes, require_packages
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.text_files import parse_json

By = Literal["url", "key"]
NAMES: dict[By, tuple[str, ...]] = {"url": ("url",), "key": ("key", "__key__", "image_id", "id")}
"""Columns that hold what a caption is joined by; the first that a row has counts."""

_META, _HASHES, _TEXT = "table.json", "hashes.npy", "captions.bin"
_FORMAT = "mgpt4-captions-1"
_REPORT_EVERY = 8192
_BATCH_ROWS = 65_536


@dataclass
class TableReport:
    """What a list of captions holds; num_rows = num_captions + num_repeated + the bad ones.

    Attributes:
        captions: the list.
        by: what it is joined by.
        num_repeated: rows whose url or key stood before, which counts.
        reasons: how many bad rows for each reason.
    """

    captions: str
    by: By
    num_rows: int = 0
    num_captions: int = 0
    num_repeated: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class CaptionTable:
    """A table that ``build_table`` made, opened; it may be sent to another process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rows: NDArray[np.uint64] = np.load(folder / _HASHES, mmap_mode="r")
        self._low, self._high, self._at = rows
        self._text = (folder / _TEXT).open("rb")
        self.report = TableReport(**parse_json((folder / _META).read_text())["report"])

    def __reduce__(self) -> tuple[type[CaptionTable], tuple[Path]]:
        return (CaptionTable, (self._folder,))

    def get(self, name: str) -> str | None:
        """The caption of a url or key; None if the list has none."""
        low, high = _hash(name)
        row = int(np.searchsorted(self._low, np.uint64(low)))
        while row < len(self._low) and int(self._low[row]) == low:
            if int(self._high[row]) == high:
                begin, length = divmod(int(self._at[row]), _LENGTHS)
                return os.pread(self._text.fileno(), length, begin).decode()
            row += 1
        return None


_LENGTHS = 2**20
"""Place and length of a text share 64 bits: texts below 1 MiB, files up to 16 TiB."""


def build_table(
    captions: Path,
    by: By,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaptionTable:
    """The table of a list in ``folder``, made unless it is there already.

    Args:
        captions: BLIP's JSON array, JSON Lines, Parquet (or a folder of it), CSV or TSV; with
            ``caption`` and a column of ``NAMES``.
        by: what to join by.
        folder: for the table; its parent must be there. It appears complete or not at all.
        on_progress: called with (bytes read, bytes in all), or rows, now and then.

    Raises:
        DataError: if the list cannot be read, or has no caption.
    """
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in _files(captions)]
    identity = {"format": _FORMAT, "by": by, "files": files}
    try:
        stored = parse_json((folder / _META).read_text())
        if {key: stored.get(key) for key in identity} == identity:
            return CaptionTable(folder)
    except (OSError, ValueError):
        pass
    with scratch_beside(folder) as holder:
        made = holder / "table"
        made.mkdir()
        report = _write(captions, by, made, on_progress)
        (made / _META).write_text(json.dumps({**identity, "report": asdict(report)}))
        if folder.exists():
            folder.rename(holder / "old")
        made.rename(folder)
    return CaptionTable(folder)


def _write(
    captions: Path, by: By, folder: Path, on_progress: Callable[[int, int], None] | None
) -> TableReport:
    report = TableReport(str(captions), by)
    reasons: Counter[str] = Counter()
    columns = array("Q"), array("Q"), array("Q")
    end = 0
    with (folder / _TEXT).open("wb", buffering=2**20) as text:
        for row, done, total in read_rows(captions):
            report.num_rows += 1
            name = next((row[key] for key in NAMES[by] if row.get(key) is not None), None)
            caption = row.get("caption")
            if reason := _fault(name, caption, by):
                reasons[reason] += 1
                continue
            data = str(caption).strip().removeprefix(BYTE_ORDER_MARK).encode()
            for column, value in zip(
                columns, (*_hash(str(name).strip()), end * _LENGTHS + len(data)), strict=True
            ):
                column.append(value)
            text.write(data)
            end += len(data)
            if on_progress is not None and report.num_rows % _REPORT_EVERY == 0:
                on_progress(done, total)
    report.reasons = dict(reasons.most_common())
    if not columns[0]:
        why = "; ".join(f"{count} rows: {reason}" for reason, count in reasons.most_common(5))
        raise DataError(
            f"{captions} has no caption",
            why=why or "it is empty",
            fix=f"its rows need caption and {' or '.join(NAMES[by])}",
        )
    rows = np.stack([np.frombuffer(column, dtype=np.uint64) for column in columns])
    del columns
    # Equal names keep their order, so that the first row counts.
    order = np.lexsort((rows[1], rows[0]))
    rows = rows[:, order]
    first = np.ones(rows.shape[1], dtype=np.bool_)
    first[1:] = (rows[:2, 1:] != rows[:2, :-1]).any(axis=0)
    report.num_captions = int(first.sum())
    report.num_repeated = rows.shape[1] - report.num_captions
    np.save(folder / _HASHES, rows[:, first])
    return report


def _fault(name: object, caption: object, by: By) -> str:
    """Why a row cannot be used; empty if it can."""
    if not isinstance(name, (str, int)) or not str(name).strip():
        return f"it has no {' or '.join(NAMES[by])}"
    if not isinstance(caption, str):
        return "it has no caption"
    if not is_visible(caption):
        return "its caption is empty"
    if not encodes(f"{name}{caption}"):
        return "its text is not UTF-8"
    return "its caption has a megabyte" if len(caption.encode()) >= _LENGTHS else ""


def _hash(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _files(captions: Path) -> list[Path]:
    try:
        files = sorted(captions.glob("*.parquet")) if captions.is_dir() else [captions]
        missing = [path for path in files if not path.is_file()]
    except OSError as error:
        raise DataError(f"{captions} cannot be read: {error.strerror}") from error
    if missing or not files:
        raise DataError(
            f"{captions} does not exist{beside(captions)}"
            if missing
            else f"the folder {captions} has no *.parquet",
            fix="give a list of captions: .json, .jsonl, .parquet, .csv or .tsv",
        )
    return files


def read_rows(captions: Path) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    """Each row of a list, with how much of it was read and of how much.

    Raises:
        DataError: if it cannot be read, or is of no known kind.
    """
    for path in _files(captions):
        kind = path.suffix.lower()
        readers = {
            ".json": _of_array, ".jsonl": _of_lines, ".ndjson": _of_lines,
            ".parquet": _of_parquet, ".csv": _of_csv, ".tsv": _of_csv,
        }  # fmt: skip
        if kind not in readers:
            raise DataError(
                f"{path} is a list of no known kind", fix=f"name it as one of {', '.join(readers)}"
            )
        try:
            yield from readers[kind](path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _of_array(path: Path) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    total = path.stat().st_size
    for entry, done in array_entries(path):
        yield entry if isinstance(entry, dict) else {}, done, total


def _of_lines(path: Path) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            done += len(line)
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError:
                entry = None
            yield entry if isinstance(entry, dict) else {}, done, total


def _of_csv(path: Path) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    total = path.stat().st_size
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                yield row, 0, total
        except csv.Error as error:
            raise DataError(f"{path} is no table that can be read: {error}") from None


def _of_parquet(path: Path) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    require_packages("reading parquet", "pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        known = {"caption", *(name for names in NAMES.values() for name in names)}
        wanted = [name for name in file.schema_arrow.names if name in known]
        done = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
            columns = batch.to_pydict()
            for values in zip(*columns.values(), strict=True):
                done += 1
                yield dict(zip(columns, values, strict=True)), done, file.metadata.num_rows
    except ArrowException as error:
        raise DataError(f"{path} is no parquet file that can be read: {error}") from None
