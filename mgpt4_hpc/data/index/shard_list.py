"""Which tar files a shard setting names: a folder, a pattern, a text file, one tar, or several."""

from __future__ import annotations

import glob
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from mgpt4_hpc.config.streams import is_url, split_joined
from mgpt4_hpc.data.images.formats import READ, suffix_of
from mgpt4_hpc.data.index.left_out import LeftOut, add_up
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.resources import expand_toy
from mgpt4_hpc.text_files import NotUtf8, read_utf8

MAX_SHARDS = 1_000_000
"""Names that a pattern may stand for; LAION-5B has a quarter of it at 10,000 samples a shard."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_LONGEST_NUMBER = 18
_COMMENT = re.compile(r"(^|\s)#.*")
_LISTS = {".txt", ".lst", ".list"}
_PACKED = {
    ".gz": "gunzip",
    ".tgz": "gunzip",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zst": "unzstd --rm",
}
"""Endings of compressed shards, and what unpacks them in place."""
_UNPACKED = {".json", ".jsonl", ".ndjson", ".parquet"}
_SHOWN = 5
_GIVE = "give a folder of *.tar, a pattern such as {00000..01255}.tar or a text file of tars"


def expand_shards(spec: str | Path, *, also: str = "") -> list[Path]:
    """The shards that ``spec`` names, in a fixed order.

    Args:
        spec: a folder (all its ``*.tar``, by name), a pattern such as
            ``data/{00000..01255}.tar``, ``{a,b}/0.tar`` or ``data/*.tar`` (by name), a text file
            with one path or pattern a line (a ``#`` that begins a word starts a comment; relative
            paths count from the file's folder), or a tar; several of them joined with ``::``;
            ``toy:shards/laion`` lies in the shipped toy world. A file of that very name comes
            before what a pattern or joint would mean.
        also: what else the caller takes; named in the error if nothing is found.

    Raises:
        DataError: if nothing is found, something named is missing or named twice, or a pattern
            stands for more than ``MAX_SHARDS`` names.
    """
    text = expand_toy(str(spec))
    shards: list[Path] = []
    for part in split_joined(text):
        _refuse_url(part)
        path = Path(part).expanduser()
        if path.is_dir():
            named = _tars_of(path)
            if not named:
                raise DataError(f"the folder {part} has no *.tar", fix=_folder_hint(path))
        else:
            named = list(itertools.islice(_expand(str(path), base=None), MAX_SHARDS + 1))
            if len(named) > MAX_SHARDS:
                raise DataError(f"{_shortened(part)!r} names more than {MAX_SHARDS:,} shards")
            _check(part, named, also)
        shards += named
    seen: set[Path] = set()
    for shard in shards:
        if shard in seen:
            raise DataError(f"{shard} is named twice by {text!r}", fix="name every shard once")
        seen.add(shard)
    return shards


def expand_urls(spec: str) -> list[str]:
    """All URLs and pipes of a stream's source: parts joined with ``::``, with braces.

    Raises:
        DataError: if a part is no URL, or has a ``*``, which no server expands; if a pattern
            stands for too many.
    """
    urls: list[str] = []
    for part in split_joined(spec):
        if not is_url(part):
            raise DataError(
                f"{part!r} in {spec!r} is no URL, others are",
                fix="streams mix with streams only: put paths into a source of a run without URLs",
            )
        if "*" in part and not part.startswith("pipe:"):
            raise DataError(
                f"the * in {part!r} is no pattern: a server does not list its files",
                fix="count them: https://host/{00000..01255}.tar",
            )
        urls += expand_braces(part)
    return urls


def left_out_of_folders(spec: str | Path) -> list[LeftOut]:
    """What lies in the folders that ``spec`` names, beside the tars that are taken."""
    left_out = []
    for part in split_joined(expand_toy(str(spec))):
        folder = Path(part).expanduser()
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix in _PACKED:
                reason = "it is compressed, and not read"
            elif path.suffix != ".tar":
                reason = "it is no .tar"
                if path.is_dir():
                    reason = "folders in a folder of shards are not searched"
            else:
                continue
            left_out.append(LeftOut(reason, suffix_of(path.name), 1, path.name))
    return add_up(left_out)


def _refuse_url(part: str) -> None:
    if is_url(part):
        raise DataError(
            f"{part!r} is a URL; an index needs shards on a file system",
            why="exact resume reads samples by their offset in a local file",
            fix="download the shards first; training alone can read URLs, as a stream",
        )


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

    Raises:
        DataError: before the first one, if they are more than ``MAX_SHARDS``.
    """
    pieces: list[Sequence[str]] = []
    total, end = 1, 0
    for match in _BRACES.finditer(pattern):
        number, choices = _choices(match.group(1))
        pieces += [[pattern[end : match.start()]], choices]
        total, end = total * number, match.end()
        if total > MAX_SHARDS:
            raise DataError(
                f"{_shortened(pattern)!r} stands for more than {MAX_SHARDS:,} names",
                why="braces multiply, also those of parts that are joined in one name",
                fix="write several patterns with :: between them, or one a line of a text file",
            )
    pieces.append([pattern[end:]])
    return map("".join, itertools.product(*pieces))


def _choices(body: str) -> tuple[int, Sequence[str]]:
    """How many strings a brace stands for, and they; these may be left out if they are too many."""
    counted = _RANGE.match(body)
    if counted:
        first, last = counted.groups()
        if max(len(first), len(last)) > _LONGEST_NUMBER:
            return MAX_SHARDS + 1, []
        number = abs(int(last) - int(first)) + 1
        if number > MAX_SHARDS:
            return number, []
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        names = [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
    elif "," in body:
        names = body.split(",")
    else:
        names = ["{" + body + "}"]
    return len(names), names


def _expand(spec: str, base: Path | None) -> Iterator[Path]:
    whole = Path(spec) if base is None else base / spec
    is_plain = not set(str(whole)) & set("{*?[") or whole.exists()
    for name in [str(whole)] if is_plain else expand_braces(str(whole)):
        path = Path(name)
        if path.suffix in _LISTS and base is None:
            yield from _expand_file(path)
        elif glob.has_magic(name) and not path.exists():
            yield from _matching(name)
        else:
            yield path


def _matching(pattern: str) -> list[Path]:
    """What a pattern of the shell stands for, by name."""
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not files:
        raise DataError(
            f"nothing matches {pattern!r}",
            fix="braces count as {00000..01255}; *, ? and [...] match names that are there",
        )
    return files


def _expand_file(path: Path) -> Iterator[Path]:
    try:
        lines = read_utf8(path).splitlines()
    except NotUtf8 as error:
        raise DataError(
            f"the shard list {path} cannot be read: its text is {error} (byte {error.byte})",
            fix="save it as UTF-8",
        ) from None
    except OSError as error:
        raise DataError(
            f"the shard list {path} cannot be read: {error.strerror}{beside(path)}"
        ) from None
    for line in map(str.strip, lines):
        if "#" in line and not (path.parent / line).is_file():
            line = _COMMENT.sub("", line).strip()
        for part in split_joined(line) if line else []:
            _refuse_url(part)
            yield from _expand(str(Path(part).expanduser()), base=path.parent)


def _check(spec: str, shards: list[Path], also: str) -> None:
    if not shards:
        raise DataError(
            f"{spec!r} names no shard", fix="give a folder, a pattern or a list of *.tar"
        )
    missing = [shard for shard in shards if not shard.is_file()]
    if [str(shard) for shard in missing] == [spec] and shards[0].suffix != ".tar":
        raise DataError(
            f"{spec!r} does not exist{beside(missing[0])}",
            fix=f"{_GIVE}{also and f', or {also}'} (docs/data.md shows how to get each)",
        )
    if missing:
        listed = ", ".join(str(shard) for shard in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of the {len(shards)} shards of {_shortened(spec)!r} are missing: "
            f"{listed}{more}{beside(missing[0])}",
            fix=_brace_hint(spec) or "correct the pattern, or finish the download",
        )
    packed = [shard for shard in shards if shard.suffix in _PACKED]
    if packed:
        raise DataError(
            f"{packed[0]} is compressed; its samples cannot be read by offset",
            fix=_unpacking(packed[0]),
        )
    unpacked = [shard for shard in shards if shard.suffix.lower() in _UNPACKED]
    if unpacked:
        raise DataError(
            f"{unpacked[0]} is no shard",
            fix="pack conversations first: mgpt4 data pack FILE --images DIR --out SHARDS",
        )
    _assert_no_index([shard for shard in shards if shard.suffix != ".tar"])


def _unpacking(shard: Path) -> str:
    """What makes plain tars of a compressed shard and those beside it."""
    ending = "".join(shard.suffixes[-2:]) if shard.suffixes[-2:-1] == [".tar"] else shard.suffix
    command = f"{_PACKED[shard.suffix]} {shlex.quote(str(shard.parent))}/*{ending}"
    return f"unpack the shards to plain .tar (images are compressed already): {command}"


def _brace_hint(spec: str) -> str:
    """What to write instead of a brace that is none here, as bash's {a..c} and {0..9..3}."""
    odd = [body for body in _BRACES.findall(spec) if ".." in body and not _RANGE.match(body)]
    return f"{{{odd[0]}}} is no pattern here: count as {{000..123}}, list as {{a,b}}" if odd else ""


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


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
    packed = sorted(entry for entry in path.iterdir() if entry.suffix in _PACKED)
    if packed:
        return f"{packed[0].name} is compressed, so its samples cannot be read by offset: " + (
            _unpacking(packed[0])
        )
    held = left_out_of_folders(path)
    extensions = {entry.extension for entry in held}
    if extensions & set(READ) and extensions & {"txt", "json"}:
        return f"these are images and texts: pack them first (mgpt4 data pack {path} --out SHARDS)"
    if held:
        kinds = ", ".join(f"{entry.count} .{entry.extension or '?'}" for entry in held[:_SHOWN])
        return f"point to the folder that holds the shards themselves; this one holds {kinds}"
    return "point to the folder that holds the shards themselves"
