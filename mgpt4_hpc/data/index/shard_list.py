"""Which tar files a shard setting names: a folder, a brace pattern, a text file or one tar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mgpt4_hpc.config.streams import is_url
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.resources import expand_toy

_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_SHOWN = 5
_GIVE = "give a folder of *.tar, a brace pattern or a text file of tars"


def expand_shards(spec: str | Path, *, also: str = "") -> list[Path]:
    """The shards that ``spec`` names, in a fixed order.

    Args:
        spec: a folder (all its ``*.tar``, by name), a pattern such as
            ``data/{00000..01255}.tar`` or ``{a,b}/0.tar``, a text file with one path or pattern
            a line (``#`` starts a comment; relative paths count from the file's folder), or a tar;
            ``toy:shards/laion`` lies in the shipped toy world.
        also: what else the caller takes, to be told where nothing is found.

    Raises:
        DataError: if nothing is found, something named is missing or named twice.
    """
    text = expand_toy(str(spec))
    if is_url(text):
        raise DataError(
            f"{text!r} is a URL; an index needs shards on a file system",
            why="exact resume reads samples by their offset in a local file",
            fix="download the shards first; training alone can read URLs, as a stream",
        )
    path = Path(text)
    if path.is_dir():
        shards = _tars_of(path)
        if not shards:
            raise DataError(f"the folder {text} has no *.tar", fix=_folder_hint(path))
        return shards
    shards = list(_expand(text, base=None))
    _check(text, shards, also)
    return shards


def _tars_of(folder: Path) -> list[Path]:
    # Not by glob, which takes a folder that cannot be read for an empty one (all errors since
    # Python 3.13).
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(".tar"))
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be listed: {error.strerror}",
            fix="see that whoever runs the job can read it",
        ) from error


def expand_braces(pattern: str) -> Iterator[str]:
    """Every string of a brace pattern, leftmost brace slowest.

    ``{08..11}`` counts with leading zeros, ``{a,b}`` lists; other braces stand for themselves.
    Braces do not nest.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    head, body, tail = pattern[: match.start()], match.group(1), pattern[match.end() :]
    counted = _RANGE.match(body)
    if counted:
        first, last = counted.groups()
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
    elif "," in body:
        choices = body.split(",")
    else:
        choices = ["\0" + body + "\1"]  # put back below: not a pattern
    for choice in choices:
        for rest in expand_braces(head + choice + tail):
            yield rest.replace("\0", "{").replace("\1", "}")


def _expand(spec: str, base: Path | None) -> Iterator[Path]:
    for name in expand_braces(spec):
        path = Path(name) if base is None else base / name
        if path.suffix in {".txt", ".lst", ".list"} and base is None:
            yield from _expand_file(path)
        else:
            yield path


def _expand_file(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the shard list {path} cannot be read: {error}") from None
    for line in lines:
        line = line.partition("#")[0].strip()
        if line:
            yield from _expand(line, base=path.parent)


def _check(spec: str, shards: list[Path], also: str) -> None:
    if not shards:
        raise DataError(
            f"{spec!r} names no shard", fix="give a folder, a pattern or a list of *.tar"
        )
    missing = [shard for shard in shards if not shard.is_file()]
    if [str(shard) for shard in missing] == [spec] and shards[0].suffix != ".tar":
        raise DataError(
            f"{spec!r} does not exist",
            fix=f"{_GIVE}{also and f', or {also}'} (docs/data.md tells how to get each)",
        )
    if missing:
        listed = ", ".join(str(shard) for shard in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of the {len(shards)} shards of {spec!r} are missing: {listed}{more}",
            fix="correct the pattern, or finish the download",
        )
    packed = [shard for shard in shards if shard.suffix in {".gz", ".tgz", ".bz2", ".xz", ".zst"}]
    if packed:
        raise DataError(
            f"{packed[0]} is compressed; its samples cannot be read by offset",
            fix="unpack the shards to plain .tar (images are compressed already)",
        )
    _assert_no_index([shard for shard in shards if shard.suffix != ".tar"])
    seen: set[Path] = set()
    for shard in shards:
        if shard in seen:
            raise DataError(f"{shard} is named twice by {spec!r}", fix="name every shard once")
        seen.add(shard)


def _assert_no_index(shards: list[Path]) -> None:
    if not shards:
        return  # `submit` then need not wait for NumPy
    from mgpt4_hpc.data.index.index_file import is_index

    for shard in shards:
        if is_index(shard):
            raise DataError(f"{shard} is an index of shards, and no shard", fix=_GIVE)


def _folder_hint(path: Path) -> str:
    if (path / "filter_cap.json").exists():
        return f"this is a cc_sbu_align folder: pack it first (mgpt4 data pack {path} --out DIR)"
    return "point to the folder that holds the shards themselves"
