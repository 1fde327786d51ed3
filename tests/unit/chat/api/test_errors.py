"""Refusals name the field, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.chat.api.errors import ApiError
from mgpt4_hpc.chat.api.request import read_messages
from tests.unit.chat.api.requests import HELLO, parsed, show


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
