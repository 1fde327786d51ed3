"""A sample's caption or conversation, from its json or txt member."""

from __future__ import annotations

import re
from typing import Any

from mgpt4_hpc.data.index.conversations import (
    ConversationError,
    is_conversation,
    parse_conversation,
)
from mgpt4_hpc.prompts import Dialogue
from mgpt4_hpc.text_files import NotUtf8, decode_utf8, parse_json

BYTE_ORDER_MARK = "\ufeff"

_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Anything but white space, control characters, the blank Braille pattern, and what Unicode lists
as Default_Ignorable_Code_Point. Written out: Python's tables change with its version."""


class CaptionError(Exception):
    """A sample without a usable caption or conversation; the message says why."""


class NoCaptionInJson(CaptionError):
    """A json that can be parsed, but holds no caption to learn: a txt stands in for it."""


def sample_text(json_data: bytes | None, txt_data: bytes | None, num_images: int) -> str | Dialogue:
    """The conversation or caption of the json; the txt where there is no json, or neither in it.

    Args:
        json_data: the json member.
        txt_data: the txt member.
        num_images: images of the sample. A conversation must name as many; a caption is of the
            first.

    Raises:
        NoCaptionInJson: if the json has none, and the txt is missing or no good either.
        CaptionError: if it is missing, empty or unreadable, or does not fit the images.
    """
    record = None if json_data is None else _parsed(json_data)
    if is_conversation(record):
        return _dialogue(record, num_images)
    if not num_images:
        raise CaptionError("it has no image")
    if json_data is None:
        if txt_data is None:
            raise CaptionError("it has neither json nor txt")
        return _of_txt(txt_data)
    try:
        return _of_record(record)
    except NoCaptionInJson:
        if txt_data is None:
            raise
        try:
            return _of_txt(txt_data)
        except CaptionError:
            pass
        raise


def holds_conversation(json_data: bytes) -> bool:
    """Whether a json member is a conversation, perhaps one that cannot be used."""
    try:
        return is_conversation(_parsed(json_data))
    except CaptionError:
        return False


def _dialogue(record: Any, num_images: int) -> Dialogue:
    try:
        dialogue = parse_conversation(record).dialogue
    except ConversationError as error:
        raise CaptionError(str(error)) from None
    if dialogue.num_images != num_images:
        raise CaptionError(
            f"its conversation names {dialogue.num_images} images, and {num_images} are there"
        )
    return dialogue


def is_visible(text: str) -> bool:
    """Whether a text has a character that a reader sees."""
    return _VISIBLE.search(text) is not None


def _parsed(data: bytes) -> Any:
    try:
        return parse_json(data)
    except UnicodeDecodeError:
        raise CaptionError("its json is not UTF-8, perhaps Latin-1 or Windows-1252") from None
    except ValueError:
        raise CaptionError("its json cannot be parsed") from None


def _of_record(record: Any) -> str:
    if not isinstance(record, dict) or record.get("caption") is None:
        raise NoCaptionInJson("its json has no caption")
    caption = record["caption"]
    if not isinstance(caption, str):
        raise NoCaptionInJson(f"its caption is {type(caption).__name__}, not text")
    caption = caption.removeprefix(BYTE_ORDER_MARK)
    if not is_visible(caption):
        raise NoCaptionInJson("its caption is empty")
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair, and no tokenizer takes it
        raise CaptionError("its caption is not UTF-8") from None
    return caption


def _of_txt(data: bytes) -> str:
    try:
        caption = decode_utf8(data)
    except NotUtf8 as error:
        raise CaptionError(f"its txt is {error}") from None
    if not is_visible(caption):
        raise CaptionError("its caption is empty")
    return caption
