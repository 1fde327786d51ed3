"""From a request's JSON to a conversation: what is understood, and how the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.chat.api.errors import ApiError
from mgpt4_hpc.chat.api.request import image_pixels, parse_body, read_messages
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.prompts import Dialogue, Turn
from tests.unit.chat.api.requests import image, parsed, show

LIMITS = Limits(max_bytes=100_000, max_pixels=10_000, max_new_tokens=64)


def said(*messages: dict[str, Any], limit: int | None = None):
    return read_messages(parsed(messages=list(messages)).messages, limit)


def test_texts_and_images_keep_their_order() -> None:
    asked = said(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [show("one"), {"type": "text", "text": " What? "}]},
        {"role": "assistant", "content": "A cube."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, show("two")]},
        {"role": "user", "content": "here?", "name": "someone"},
    )
    assert asked.urls == ["one", "two"]
    assert asked.dialogue == Dialogue(
        (Turn((None, "What?"), "A cube."), Turn(("And", None, "here?"), None)), "Be brief."
    )


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"model": "\\ud800"}'),
        *(b"[" * 40_000, b"[[],[]" * 9_999, b'{"a":' * 1000),
        b'{"messages": [' + b"{}," * 30_000 + b"{}]}",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_json_of_a_request(data: bytes) -> None:
    with pytest.raises(ApiError):
        parse_body(data)


def test_values_that_ask_for_nothing_are_accepted_and_change_nothing() -> None:
    body = parsed(
        n=1, user="me", metadata={}, logprobs=None, tools=[], frequency_penalty=0.0, stop=None,
        response_format={"type": "text"}, stream_options=None, temperature=None,
    )  # fmt: skip
    assert body.model_dump(include=set(type(body).model_fields)) == parsed().model_dump()


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp"])
def test_a_data_url_is_an_image(suffix: str) -> None:
    (pixels,) = image_pixels([image(suffix=suffix)], LIMITS, 16)
    assert pixels.shape == (3, 16, 16) and pixels[0].min() > 240


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.org/cat.jpg", "no address"),
        ("http://127.0.0.1:1/", "no address"),
        ("file:///etc/passwd", "no address"),
        ("/etc/passwd", "no address"),
        ("", "no address"),
        ("data:text/html;base64,AAAA", "no address"),
        ("data:image/png,AAAA", "no address"),
        ("data:image/png;base64,A", "no base64"),
        ("data:image/png;base64,%%%%", "no base64"),
        ("data:image/png;base64,äöü", "no base64"),
        ("data:image/png;base64,", "cannot be used"),
        ("data:image/png;base64,AAAA", "cannot be used"),
        ("data:image/png;base64," + "A" * 140_000, "too large"),
        (image(200), "pixels"),
    ],
)
def test_an_image_that_cannot_be_used(url: str, told: str) -> None:
    with pytest.raises((ApiError, DataError), match=told):
        image_pixels([image(), url], LIMITS, 16)
