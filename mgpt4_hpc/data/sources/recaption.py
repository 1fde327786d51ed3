"""Other captions for shards that exist: the same images, joined to a list by url or key.

The output is a folder::

    OUT/
      00000.tar                    a shard under its own name; it appears whole
      .recaption/plan.json         what is joined, and how: fixed by the first start
      .recaption/captions/         the list as a table (see ``caption_table``)
      .recaption/done/00000.json   what a shard gave; written when its tar is there
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mgpt4_hpc.data.images import formats
from mgpt4_hpc.data.images.decode import ImageError, decode_image
from mgpt4_hpc.data.index.index import map_shards
from mgpt4_hpc.data.index.left_out import LeftOut, add_up
from mgpt4_hpc.data.index.member_names import name_fault, show, split_name
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.sources.caption_table import By, CaptionTable
from mgpt4_hpc.data.tar.header import LARGE_WINDOW, WindowedFile
from mgpt4_hpc.data.tar.walk import walk_tar
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.text_files import parse_json

WORK_FOLDER = ".recaption"
_FORMAT = "mgpt4-recaption-1"
_QUALITY = 95
"""Quality of the JPEGs, as img2dataset's default for the original's shards."""
_NOT_MATCHED = "the list has no caption for it"


@dataclass
class RecaptionReport:
    """What the shards gave; num_samples = num_matched + those of ``left_out`` that are samples.

    Attributes:
        num_shards: that are done, of those asked for.
        num_samples: images of the shards.
        num_matched: that were written with a new caption.
        num_captions: different urls or keys of the list.
        left_out: samples and members that were not written, by reason and extension.
    """

    out: str
    num_shards: int = 0
    num_samples: int = 0
    num_matched: int = 0
    num_captions: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    shard: Path
    out: Path
    by: By
    size: int | None


def recaption(
    shards: Sequence[Path],
    table: CaptionTable,
    out: Path,
    *,
    size: int | None = None,
    workers: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Write the shards with the captions of ``table`` into ``out``; what is done stays.

    Args:
        shards: tars; their names must differ.
        table: says by what is joined.
        out: the folder, begun by ``begin_recaption``.
        size: letterbox the images to this side, in pixels; None keeps their bytes.
        workers: processes.
        on_shard: called with (shards done, shards in all).

    Raises:
        DataError: if a shard cannot be read or written.
    """
    jobs = [_Job(shard, out, table.report.by, size) for shard in shards]
    todo = [job for job in jobs if not _is_done(job)]
    run = partial(_recaption_shard, table=table)
    on_progress = on_shard or (lambda done, total: None)
    on_progress(len(jobs) - len(todo), len(jobs))
    for number, _ in enumerate(map_shards(run, todo, workers), start=1):
        on_progress(len(jobs) - len(todo) + number, len(jobs))


def begin_recaption(
    shards: Sequence[Path], captions: Path, by: By, out: Path, size: int | None
) -> Path:
    """Make or resume the output's folder; returns the folder of its table.

    Raises:
        DataError: if it was begun otherwise, or two shards have one name.
    """
    names = {shard.name for shard in shards}
    if len(names) < len(shards):
        raise DataError("two of the shards have the same name", fix="recaption folder by folder")
    plan = {"format": _FORMAT, "captions": captions.name, "by": by, "size": size}
    path = out / WORK_FOLDER / "plan.json"
    try:
        (out / WORK_FOLDER / "done").mkdir(parents=True, exist_ok=True)
        if path.exists():
            begun = parse_json(path.read_text())
            if begun != plan:
                raise DataError(f"{out} was begun otherwise: {begun}", fix="give another --out")
        elif strange := list(out.glob("*.tar")):
            raise DataError(f"{out} holds other shards, as {strange[0]}", fix="give another --out")
        else:
            path.write_text(json.dumps(plan))
    except OSError as error:
        raise DataError(f"cannot use the folder {out}: {error.strerror}") from error
    return out / WORK_FOLDER / "captions"


def report_of(shards: Sequence[Path], table: CaptionTable, out: Path) -> RecaptionReport:
    """Add up what the shards gave."""
    report = RecaptionReport(str(out), num_captions=table.report.num_captions)
    left_out: list[LeftOut] = []
    for shard in shards:
        try:
            done = parse_json(_note(out, shard).read_text())
        except (OSError, ValueError):
            continue
        report.num_shards += 1
        report.num_samples += done["num_samples"]
        report.num_matched += done["num_matched"]
        left_out += [LeftOut(*entry) for entry in done["left_out"]]
    report.left_out = add_up(left_out)
    return report


def _note(out: Path, shard: Path) -> Path:
    return out / WORK_FOLDER / "done" / f"{shard.stem}.json"


def _is_done(job: _Job) -> bool:
    try:
        done = parse_json(_note(job.out, job.shard).read_text())
    except (OSError, ValueError):
        return False
    there = (job.out / job.shard.name).exists() or not done["num_matched"]
    return bool(there and done["shard"] == _state(job.shard))


def _state(shard: Path) -> list[int]:
    stat = shard.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _recaption_shard(job: _Job, table: CaptionTable) -> None:
    """One shard: its tar and then its note appear, whole."""
    try:
        state = _state(job.shard)
        with scratch_beside(job.out / job.shard.name) as holder:
            made = holder / "shard.tar"
            with job.shard.open("rb") as file, made.open("wb") as raw:
                counts = _write_shard(file.fileno(), raw, job, table)
                raw.flush()
                os.fsync(raw.fileno())
            if counts["num_matched"]:
                made.replace(job.out / job.shard.name)
            note = holder / "note.json"
            note.write_text(json.dumps({"shard": state, **counts}))
            note.replace(_note(job.out, job.shard))
    except OSError as error:
        raise DataError(
            f"{job.shard} cannot be given other captions: {error.strerror or error}",
            fix="mend the reason and give the same command again: whole shards stay",
        ) from error


def _write_shard(fd: int, raw: Any, job: _Job, table: CaptionTable) -> dict[str, Any]:
    listing = walk_tar(WindowedFile(fd, os.fstat(fd).st_size, LARGE_WINDOW))
    samples: dict[bytes, dict[bytes, int]] = {}
    for number, member in enumerate(listing.names):
        key, extension = split_name(member)
        samples.setdefault(key, {}).setdefault(extension, number)

    def read(number: int) -> bytes:
        """Content of a member of the source shard."""
        return os.pread(fd, int(listing.lengths[number]), int(listing.offsets[number]))

    left_out = [LeftOut(fault.reason, "", 1, show(fault.name)) for fault in listing.faults]
    num_samples = num_matched = 0
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for key, parts in samples.items():
            kind = next((name.encode() for name in formats.READ if name.encode() in parts), None)
            kept = {b"json", b"txt", kind}
            left_out += [
                LeftOut("recaption keeps image, json and txt", show(extension), 1, show(key))
                for extension in parts
                if extension not in kept
            ]
            if kind is None:
                continue
            num_samples += 1
            try:
                record = _record(read(parts[b"json"]) if b"json" in parts else b"{}")
                caption = _caption_for(key, record, job.by, table)
                image, form = read(parts[kind]), kind.decode()
                if job.size is not None:
                    image, form = _letterboxed(image, job.size), "jpg"
            except (_Unmatched, ImageError) as error:
                left_out.append(LeftOut(str(error), "", 1, show(key)))
                continue
            num_matched += 1
            name = key.decode()
            text = json.dumps({**record, "caption": caption}, ensure_ascii=False).encode()
            for suffix, data in ((form, image), ("json", text), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    counts = {"num_samples": num_samples, "num_matched": num_matched}
    return {**counts, "left_out": [list(asdict(entry).values()) for entry in add_up(left_out)]}


class _Unmatched(Exception):
    """Why a sample gets no caption."""


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = parse_json(data)
        json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise _Unmatched("its json cannot be parsed") from None
    if not isinstance(record, dict):
        raise _Unmatched("its json is no object")
    return record


def _caption_for(key: bytes, record: dict[str, Any], by: By, table: CaptionTable) -> str:
    if reason := name_fault(key):
        raise _Unmatched(reason)
    caption: str | None = None
    if by == "url":
        url = record.get("url")
        if not isinstance(url, str):
            raise _Unmatched("its json has no url")
        caption = table.get(url.strip())
    else:
        name = key.decode()
        caption = table.get(name) or table.get(name.rpartition("/")[2])
    if caption is None:
        raise _Unmatched(_NOT_MATCHED)
    return caption


def _letterboxed(image: bytes, size: int) -> bytes:
    import numpy as np
    import simplejpeg

    pixels_HWC = np.ascontiguousarray(decode_image(image, size, "border").transpose(1, 2, 0))
    data: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=_QUALITY, colorsubsampling="420")
    return data
