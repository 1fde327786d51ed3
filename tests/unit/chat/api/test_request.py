"""From a request's JSON to a conversation: what is understood, and how the rest is refused."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from mgpt4_hpc.chat.api.errors import ApiError
from mgpt4_hpc.chat.api.request import image_pixels, parse_body, read_messages
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.prompts import Dialogue, Turn

LIMITS = Limits(max_bytes=100_000, max_pixels=10_000, max_new_tokens=64)
HELLO = [{"role": "user", "content": "Hello"}]


def image(side: int = 8, suffix: str = "png") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(stream, suffix)
    return f"data:image/{suffix};base64,{base64.b64encode(stream.getvalue()).decode()}"


def parsed(**fields: Any):
    return parse_body(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def said(*messages: dict[str, Any], limit: int | None = None):
    return read_messages(parsed(messages=list(messages)).messages, limit)


def show(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


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
    ("fields", "param", "told"),
    [
        ({"messages": []}, "messages", "last message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0", "first turn"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages", "last message"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, "messages.1", "comes first"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "assistant"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "question"),
        ({"messages": [{"role": "system", "content": [show("x")]}]}, "messages.0", "images"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "array"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages.0.content.0",
            "tag",
        ),
        ({"messages": [{"role": "user", "content": [show("x")] * 17}]}, "messages", "16 images"),
        ({"messages": HELLO * 2000}, "messages", "1024"),
        ({"messages": "Hello"}, "messages", "array"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages", "context"),
        ({"model": None}, "model", "string"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": "16"}, "max_tokens", "integer"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"temperature": 2.5}, "temperature", "less"),
        ({"top_p": 1.5}, "top_p", "less"),
        ({"seed": 10**30}, "seed", "less"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "4"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"temprature": 0}, "temprature", "Unknown parameter: 'temprature'"),
        ({"x" * 10_000: 0}, "x" * 200, "Unknown parameter"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(ApiError, match=told) as caught:
        read_messages(parsed(**fields).messages, 1000)
    error = caught.value.body()["error"]
    assert error["param"].startswith(param) and len(error["message"]) <= 500
    assert error["type"] == "invalid_request_error" and caught.value.status == 400


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


def test_values_that_ask_for_nothing_are_accepted() -> None:
    parsed(
        n=1, user="me", metadata={}, logprobs=None, tools=[], frequency_penalty=0.0, stop=None,
        response_format={"type": "text"}, stream_options=None, temperature=None,
    )  # fmt: skip


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
