"""Answers as OpenAI's clients read them, whole and in chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mgpt4_hpc.chat.api.replies import Reply
from mgpt4_hpc.model.generation.answer import Answer

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}


def events(data: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n")[:-1]]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


@pytest.mark.parametrize(("stopped", "reason"), [(True, "stop"), (False, "length")])
@pytest.mark.parametrize("with_usage", [True, False])
def test_whole_and_in_chunks(stopped: bool, reason: str, with_usage: bool) -> None:
    answer = Answer("A cat.", stopped, (1, 2, 3))
    reply = Reply("run@9", 40, with_usage=with_usage)
    whole = reply.whole(answer)
    assert whole["choices"][0]["message"]["content"] == "A cat." and whole["usage"] == USAGE
    assert whole["choices"][0]["finish_reason"] == reason
    *chunks, done = events(
        reply.first() + reply.piece("A ") + reply.piece("cat.") + reply.last(answer)
    )
    assert done == "[DONE]" and {chunk["id"] for chunk in chunks} == {whole["id"]}
    if with_usage:
        assert chunks[-1]["choices"] == [] and chunks.pop()["usage"] == USAGE
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "A cat."
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, reason]
