"""A sample's caption, from its json or txt member."""

from __future__ import annotations

import json


class CaptionError(Exception):
    """A sample without a usable caption; the message says why."""


def caption_of(json_data: bytes | None, txt_data: bytes | None) -> str:
    """The caption: that of the json; the txt where there is no json.

    Raises:
        CaptionError: if it is missing, empty or unreadable.
    """
    if json_data is not None:
        try:
            record = json.loads(json_data)
        except (ValueError, RecursionError):
            raise CaptionError("its json cannot be parsed") from None
        if not isinstance(record, dict) or "caption" not in record:
            raise CaptionError("its json has no caption")
        caption = record["caption"]
        if not isinstance(caption, str):
            raise CaptionError(f"its caption is {type(caption).__name__}, not text")
    elif txt_data is not None:
        try:
            caption = txt_data.decode()
        except UnicodeDecodeError:
            raise CaptionError("its txt is not UTF-8") from None
    else:
        raise CaptionError("it has neither json nor txt")
    if not caption.strip():
        raise CaptionError("its caption is empty")
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair, and no tokenizer takes it
        raise CaptionError("its caption is not UTF-8") from None
    return caption
