"""Conversations in the two forms that people have them in, read from JSON values.

LLaVA's::

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> What?"},
                                         {"from": "gpt", "value": "A cat."}]}

Messages, perhaps with ``images``; in shards this form stands, with the images beside it::

    {"messages": [{"role": "user", "content": [{"type": "image"},
                                               {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A cat."}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.prompts import Dialogue, Turn

IMAGE_MARK = "<image>"
"""Where a picture stands in a text of either form."""

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
_LISTS = (("conversations", "from", "value"), ("messages", "role", "content"))
_REFERENCES = ("image", "path", "url", "image_url", "index")


class ConversationError(Exception):
    """A conversation that cannot be used; the message says why."""


@dataclass(frozen=True)
class Parsed:
    """A conversation, and where its images are said to be.

    Attributes:
        dialogue: what is said.
        images: for each image in the dialogue what its piece says of it: a path, bytes, a number
            in the record's list, or None for the next of that list.
        listed: the record's own list of images.
    """

    dialogue: Dialogue
    images: tuple[Any, ...]
    listed: tuple[Any, ...]


def is_conversation(record: object) -> bool:
    """Whether a JSON value is of either form. One with a caption is a captioned image."""
    return (
        isinstance(record, dict)
        and record.get("caption") is None
        and any(record.get(name) is not None for name, *_ in _LISTS)
    )


def parse_conversation(record: Mapping[str, Any]) -> Parsed:
    """The conversation of a record.

    Raises:
        ConversationError: if it is of neither form, or has turns that cannot be learned from.
    """
    messages = list(_messages(record))
    system = ""
    if messages and messages[0][0] == "system":
        system = _plain(messages.pop(0)[1], "its system prompt")
    elif record.get("system") is not None:
        system = _plain(_pieces(record["system"], "its system prompt"), "its system prompt")
    if not messages:
        raise ConversationError("its conversation has no turns")
    for number, (role, _) in enumerate(messages):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise ConversationError(
                f"its roles are out of order: message {number + 1} is from {role}, not {wanted}"
            )
    if len(messages) % 2:
        raise ConversationError("its last question has no answer")
    turns, images = [], []
    for number in range(0, len(messages), 2):
        place = f"question {number // 2 + 1}"
        question = messages[number][1]
        answer = _plain(messages[number + 1][1], f"its answer to {place}")
        if not question:
            raise ConversationError(f"its {place} is empty")
        if not answer:
            raise ConversationError(f"its answer to {place} is empty")
        turns.append(Turn(tuple(p if isinstance(p, str) else None for p in question), answer))
        images += [piece.reference for piece in question if isinstance(piece, _Image)]
    return Parsed(Dialogue(tuple(turns), system), tuple(images), _listed(record))


def record_of(dialogue: Dialogue) -> dict[str, Any]:
    """The form that stands in shards; ``parse_conversation`` gives the same dialogue back."""
    return {"messages": dialogue.messages()}


@dataclass(frozen=True)
class _Image:
    reference: Any = None


def _messages(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str | _Image]]]:
    """Role and content of each message."""
    for name, role_key, content_key in _LISTS:
        entries = record.get(name)
        if entries is None:
            continue
        if not isinstance(entries, list):
            raise ConversationError(f"its {name} are {type(entries).__name__}, not a list")
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict) or entry.get(role_key) is None:
                raise ConversationError(f"its message {number} has no {role_key!r}")
            role = _ROLES.get(str(entry[role_key]))
            if role is None:
                raise ConversationError(
                    f"its message {number} is from {_shown(entry[role_key])}: use one of "
                    f"{', '.join(_ROLES)}"
                )
            yield role, _pieces(entry.get(content_key), f"its message {number}")
        return
    raise ConversationError("it has neither conversations nor messages")


def _pieces(content: object, where: str) -> list[str | _Image]:
    """Texts without white space around them, none empty, and images."""
    pieces: list[str | _Image] = []
    if isinstance(content, list):
        joined = ""
        for piece in content:
            kind = piece.get("type") if isinstance(piece, dict) else None
            if kind == "text":
                joined += _checked(piece.get("text"), where)
            elif kind in ("image", "image_url"):
                pieces += [joined, _Image(_reference(piece))]
                joined = ""
            else:
                raise ConversationError(
                    f"{where} has a piece of type {_shown(kind)}: only text and image can be used"
                )
        pieces.append(joined)
    else:
        for place, text in enumerate(_checked(content, where).split(IMAGE_MARK)):
            pieces += [_Image(), text] if place else [text]
    stripped = [piece.strip() if isinstance(piece, str) else piece for piece in pieces]
    return [piece for piece in stripped if piece != ""]


def _checked(text: object, where: str) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ConversationError(f"{where} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair, and no tokenizer takes it
        raise ConversationError(f"{where} has half a surrogate pair: it is not UTF-8") from None
    return text


def _plain(pieces: Sequence[str | _Image], where: str) -> str:
    """The text of what may not have images; empty if there is none."""
    if any(isinstance(piece, _Image) for piece in pieces):
        raise ConversationError(f"{where} has an image: only questions may")
    return "".join(str(piece) for piece in pieces)


def _reference(piece: Mapping[str, Any]) -> Any:
    """What an image's piece says of where it is; None if nothing."""
    for name in _REFERENCES:
        value = piece.get(name)
        if name == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if value is not None:
            return value
    return None


def _listed(record: Mapping[str, Any]) -> tuple[Any, ...]:
    for name in ("images", "image"):
        value = record.get(name)
        if isinstance(value, list):
            return tuple(value)
        if value is not None and value != "":
            return (value,)
    return ()


def _shown(value: object) -> str:
    return ascii(value)[:40]
