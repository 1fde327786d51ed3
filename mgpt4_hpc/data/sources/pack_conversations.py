"""A file of conversations and a folder of images into tar shards.

The file is LLaVA's JSON, JSON Lines, or Parquet, with records as ``conversations.py`` reads them.
Parquet may hold the images themselves.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mgpt4_hpc.data.index.conversations import (
    ConversationError,
    Parsed,
    is_conversation,
    parse_conversation,
    record_of,
)
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.sources.convert import require_packages
from mgpt4_hpc.data.sources.pack import (
    SAMPLES_PER_SHARD,
    PackedShards,
    ShardWriter,
    require_empty,
    unusable,
)
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.retry import is_transient
from mgpt4_hpc.text_files import NotUtf8, decode_utf8

_AT_ONCE = 256
"""Samples per batch: threads read and decode their images before the next are parsed."""
_SHOWN = 50
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.ASCII)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)


@dataclass(frozen=True)
class _Entry:
    """One record of the file.

    Attributes:
        number: from 0.
        share: of the file that is read with it, 0 to 1.
        value: what it holds.
        fault: what is wrong with it, if it cannot even be parsed.
    """

    number: int
    share: float
    value: Any = None
    fault: str = ""

    @property
    def name(self) -> str:
        """For people: the number, and the id if it has one."""
        own = self.value.get("id") if isinstance(self.value, dict) else None
        return f"record {self.number}" + (f" (id {ascii(own)[:60]})" if own is not None else "")


def pack_conversations(
    src: Path,
    out: Path,
    *,
    images: Path | None = None,
    leave_out_bad: bool = False,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackedShards:
    """Pack conversations into shards under ``out``.

    Every image is decoded once to see that it can be. The same input gives the same bytes. A
    sample's key is its record's number.

    Args:
        src: the file.
        out: folder for the shards; it must not exist or be empty. It appears complete or not at
            all.
        images: folder that the images' paths start from; by default the file's own.
        leave_out_bad: pack what is good, also if some is bad.
        samples_per_shard: the last shard may have fewer.
        on_progress: called with (bytes done, bytes in all) of the file now and then.

    Raises:
        DataError: if the file cannot be read, or naming every bad record at once.
    """
    require_empty(out)
    folder = (images or src.parent).absolute()
    faults: list[str] = []
    total, size = 0, src.stat().st_size
    out.parent.mkdir(parents=True, exist_ok=True)
    num_cores = len(os.sched_getaffinity(0))
    with scratch_beside(out) as holder, ThreadPoolExecutor(num_cores) as pool:
        fresh = holder / "shards"
        fresh.mkdir()
        with ShardWriter(fresh, samples_per_shard) as shards:
            entries = _entries(src)
            while chunk := list(islice(entries, _AT_ONCE)):
                loaded = pool.map(lambda entry: _load(entry, folder), chunk)
                for entry, sample in zip(chunk, loaded, strict=True):
                    total += 1
                    if isinstance(sample, str):
                        faults.append(f"{entry.name}: {sample}")
                    elif leave_out_bad or not faults:
                        shards.add(f"{entry.number:09d}", sample)
                on_progress(int(chunk[-1].share * size), size)
        if not total:
            raise DataError(f"{src} holds no conversation")
        if len(faults) == total or (faults and not leave_out_bad):
            raise _unusable(src, folder, faults, total)
        fresh.rename(out)
    return PackedShards(sorted(out.glob("*.tar")), shards.num_samples, bad=faults)


def _unusable(src: Path, folder: Path, faults: list[str], total: int) -> DataError:
    fix = "repair them"
    if any(fault.endswith(os.strerror(errno.ENOENT)) for fault in faults):
        fix += f"; images are looked up in {folder}, --images DIR names another folder"
    if len(faults) < total:
        fix += "; or pack the others with --leave-out-bad"
    return unusable(f"{len(faults)} of the {total} conversations of {src}", faults, fix, _SHOWN)


def _load(entry: _Entry, folder: Path) -> dict[str, bytes] | str:
    """The members of a record's sample by their extensions, or why it cannot be used."""
    if entry.fault:
        return entry.fault
    if not is_conversation(entry.value):
        return "it has neither conversations nor messages"
    try:
        parsed = parse_conversation(entry.value)
        places = _places(parsed)
    except ConversationError as error:
        return str(error)
    members: dict[str, bytes] = {}
    faults = []
    for number, place in enumerate(places):
        data = _image(place, folder)
        if isinstance(data, str):
            faults.append(data)
        else:
            members[f"{number}.jpg" if number else "jpg"] = data
    record = json.dumps(record_of(parsed.dialogue), ensure_ascii=False).encode()
    return "; ".join(faults) or {**members, "json": record}


def _places(parsed: Parsed) -> list[Any]:
    """Where each image of the dialogue is. Raises ConversationError if they do not match."""
    places, unused = [], list(range(len(parsed.listed)))
    for image in parsed.images:
        if image is None or isinstance(image, int):
            number = image if image is not None else (unused[0] if unused else -1)
            if not 0 <= number < len(parsed.listed):
                named = sum(image is None or isinstance(image, int) for image in parsed.images)
                raise ConversationError(
                    f"its questions name {named} images, and {len(parsed.listed)} are listed"
                )
            places.append(parsed.listed[number])
            unused = [other for other in unused if other != number]
        else:
            places.append(image)
    if unused:
        shown = ", ".join(_name(parsed.listed[number]) for number in unused[:5])
        raise ConversationError(f"no question has a place for its image {shown}: write <image>")
    return places


def _name(place: Any) -> str:
    if isinstance(place, Mapping):
        place = place.get("path")
    return place[:100] if isinstance(place, str) else "without a name"


def _image(place: Any, folder: Path) -> bytes | str:
    """The bytes of an image, or why it cannot be used."""
    from mgpt4_hpc.data.images.decode import ImageError, decode_rgb

    if isinstance(place, Mapping):
        held = place.get("bytes")
        place = held if held is not None else place.get("path")
    name = place[:100] if isinstance(place, str) else "an image in the file itself"
    try:
        data = _read(place, folder) if isinstance(place, str) else place
        if not isinstance(data, bytes):
            return f"its image is {type(place).__name__}, neither a path nor bytes"
        decode_rgb(data)
    except OSError as error:
        if is_transient(error):
            raise DataError(
                f"{name} cannot be read just now: {error.strerror}",
                fix="try again when the storage answers",
            ) from error
        return f"{name}: {error.strerror or error}"
    except (ImageError, ValueError) as error:
        return f"{name}: {error}"
    return data


def _read(place: str, folder: Path) -> bytes:
    """An image by its path or data URI. Raises OSError, or ValueError if it is neither."""
    if match := _DATA_URI.match(place):
        try:
            return base64.b64decode(place[match.end() :], validate=True)
        except binascii.Error:
            raise ValueError("its base64 is damaged") from None
    if _ADDRESS.match(place):
        raise ValueError("that is an address: download the image, and name its file")
    path = Path(os.path.normpath(folder / place))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"that is outside of {folder}")
    return path.read_bytes()


def _entries(src: Path) -> Iterator[_Entry]:
    """The records of a file. Raises DataError if it cannot be read, or is of no known form."""
    try:
        with src.open("rb") as file:
            head = file.read(64)
            file.seek(0)
            if head.startswith(b"PAR1"):
                yield from _rows(file, src)
                return
            text = decode_utf8(file.read())
    except OSError as error:
        raise DataError(f"{src} cannot be read: {error.strerror or error}") from None
    except NotUtf8 as error:
        raise DataError(f"{src} is {error} (byte {error.byte})", fix="save it as UTF-8") from None
    beginning = text[:4096].lstrip()
    if beginning.startswith("version https://git-lfs"):
        raise DataError(f"{src} is a git-lfs pointer, not the file", fix="run `git lfs pull`")
    if beginning.startswith("["):
        yield from _elements(text, src)
    elif beginning.startswith("{"):
        yield from _lines(text)
    else:
        raise DataError(
            f"{src} is neither JSON, JSON Lines nor Parquet: it begins with {beginning[:20]!a}"
        )


def _elements(text: str, src: Path) -> Iterator[_Entry]:
    """The elements of a JSON array, one by one: the whole would take several times the memory."""
    decoder = json.JSONDecoder()
    white = re.compile(r"[ \t\r\n]*")

    def skip(place: int) -> int:
        """The place of the next character that is no white space."""
        space = white.match(text, place)
        assert space is not None
        return space.end()

    number, place = 0, skip(text.index("[") + 1)
    try:
        while text[place : place + 1] != "]" or number:
            value, place = decoder.raw_decode(text, place)
            yield _Entry(number, place / len(text), value)
            number, place = number + 1, skip(place)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise ValueError("an element is not followed by a comma")
            place = skip(place + 1)
        if skip(place + 1) != len(text):
            raise ValueError("something stands behind the array")
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", "") or str(error) or type(error).__name__
        raise DataError(
            f"{src} is no whole JSON array: {why}, in record {number}",
            why="it was cut short or damaged; records behind that place cannot be found",
        ) from None


def _lines(text: str) -> Iterator[_Entry]:
    number, lines = 0, text.split("\n")
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        share = line_number / len(lines)
        try:
            yield _Entry(number, share, json.loads(line))
        except (ValueError, RecursionError):
            yield _Entry(number, share, fault=f"line {line_number} is no JSON")
        number += 1


def _rows(file: IO[bytes], src: Path) -> Iterator[_Entry]:
    require_packages("reading Parquet", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        table, number = parquet.ParquetFile(file), 0
        for batch in table.iter_batches(_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield _Entry(number - 1, number / table.metadata.num_rows, row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{src} is no whole Parquet file: {str(error)[:200]}") from None
