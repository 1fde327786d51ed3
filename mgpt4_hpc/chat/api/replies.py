"""Answers in the shape of OpenAI's chat completions, whole and in pieces."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from mgpt4_hpc.model.generation.answer import Answer


class Reply:
    """The answer to one request.

    Args:
        model: the id that was asked for.
        num_prompt: tokens of the prompt, those of images included.
        with_usage: in pieces, the last one counts tokens.
    """

    def __init__(self, model: str, num_prompt: int, *, with_usage: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._num_prompt = num_prompt
        self._with_usage = with_usage

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _reason(answer),
        }
        usage = self._usage(answer)
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def first(self) -> bytes:
        """The chunk that opens the answer, as a server-sent event."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """A chunk with text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> bytes:
        """The chunks that close the answer."""
        events = self._chunk({}, _reason(answer))
        if self._with_usage:
            events += server_sent_event(
                {**self._head, **_CHUNK, "choices": [], "usage": self._usage(answer)}
            )
        return events + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._with_usage else {}
        return server_sent_event({**self._head, **_CHUNK, "choices": [choice], **usage})

    def _usage(self, answer: Answer) -> dict[str, int]:
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": len(answer.token_ids),
            "total_tokens": self._num_prompt + len(answer.token_ids),
        }


_CHUNK = {"object": "chat.completion.chunk"}


def server_sent_event(value: dict[str, Any]) -> bytes:
    """A server-sent event: a chunk, or an error after the first piece."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _reason(answer: Answer) -> str:
    return "stop" if answer.stopped else "length"
