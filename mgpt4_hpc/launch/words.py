"""Quantities as people say them."""

from __future__ import annotations

_STEPS = (("s", 1.0, 90.0), ("min", 60.0, 90 * 60.0), ("h", 3600.0, 48 * 3600.0))


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``4.0 d``: two figures are enough for a glance."""
    seconds = max(0.0, seconds)
    for unit, size, limit in _STEPS:
        if seconds < limit:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit == "h" else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def first_line(text: str) -> str:
    """The first line that says something, without control characters."""
    for line in text.splitlines():
        line = "".join(char if char.isprintable() else " " for char in line).strip()
        if line:
            return line
    return ""
