"""Quantities, and the names beside a missing file, as messages show them."""

from __future__ import annotations

import difflib
import shlex
import time
from pathlib import Path

_NAMES_SHOWN = 3
_STEPS = (("s", 1.0, 90.0), ("min", 60.0, 90 * 60.0), ("h", 3600.0, 48 * 3600.0))


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``4.0 d``: two figures are enough for a glance."""
    seconds = max(0.0, seconds)
    for unit, size, limit in _STEPS:
        if seconds < limit:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit == "h" else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def time_limit(seconds: float) -> str:
    """``4-00:00:00``, ``02:00:00``: a time limit as Slurm writes it, to be compared and pasted."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest_s:02d}"


def clock_time(at: float, now: float) -> str:
    """``14:32``, with the date in front if that is not today's; local time."""
    then, today = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def shell_word(name: str) -> str:
    """A run's name as one word of a command to be pasted, whatever it is called."""
    # A name that begins with a dash would be taken for an option.
    return shlex.quote(name if not name.startswith("-") else f"./{name}")


def printable(text: str) -> str:
    """``text`` for a terminal: nothing in it can move the cursor or change colours."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def first_line(text: str) -> str:
    """The first line that says something, without control characters."""
    for line in text.splitlines():
        line = "".join(char if char.isprintable() else " " for char in line).strip()
        if line:
            return line
    return ""


def size_text(size: float) -> str:
    """``38 MiB`` of bytes."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """``1 shard``, ``2 shards``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def beside(path: Path) -> str:
    """``; beside it lie 1.png, 1.PNG``, to be put behind "No such file"; empty if nothing is near.

    Near are the same name in other letters or with another extension, then similar names.
    """
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return _folder_beside(path)
    stem = path.stem.casefold()
    same = [name for name in names if name.casefold().partition(".")[0] == stem.partition(".")[0]]
    near = same or difflib.get_close_matches(path.name, names, _NAMES_SHOWN, cutoff=0.75)
    if not near:
        return ""
    more = " ..." if len(near) > _NAMES_SHOWN else ""
    verb = "lies" if len(near) == 1 else "lie"
    return f"; beside it {verb} {', '.join(near[:_NAMES_SHOWN])}{more}"


def _folder_beside(path: Path) -> str:
    """The same for the first folder on the way that is missing."""
    missing = [folder for folder in path.parents if not folder.exists()]
    return f"; {missing[-1]} does not exist{beside(missing[-1])}" if missing else ""
