"""Text and JSON that people and programs wrote: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""UTF-32 first: its little-endian mark begins with UTF-16's."""


class NotUtf8(ValueError):
    """Bytes in another encoding; the message reads on after "its text is".

    Attributes:
        byte: offset of the first byte that does not fit.
    """

    def __init__(self, message: str, byte: int = 0) -> None:
        super().__init__(message)
        self.byte = byte


def decode_utf8(data: bytes) -> str:
    """The text without its byte order mark.

    Raises:
        NotUtf8: naming the encoding where it shows.
    """
    for mark, encoding in _OTHER_MARKS:
        if data.startswith(mark):
            raise NotUtf8(f"{encoding}, not UTF-8")
    if 3 * data.count(0) > len(data):  # every other byte, in texts of Latin letters
        raise NotUtf8("UTF-16 without a mark, or no text at all, not UTF-8", data.index(0))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUtf8("not UTF-8, perhaps Latin-1 or Windows-1252", error.start) from None


def read_utf8(path: Path) -> str:
    """A file's text without its byte order mark. Raises OSError and NotUtf8."""
    return decode_utf8(path.read_bytes())


def text_of(path: Path) -> str | None:
    """A file's text, whatever bytes it has; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def last_lines(log: Path) -> str:
    """The last lines of what a program printed into a file, in one line for a message."""
    text = text_of(log)
    if text is None:
        return "it left no log"
    nonempty = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(nonempty[-5:])[-600:] or "it printed nothing"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, also where it is nested deeper than Python parses.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
