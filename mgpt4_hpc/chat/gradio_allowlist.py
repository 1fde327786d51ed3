"""The part of Gradio's interface that its page needs; all else is not there.

Gradio answers to more than that: it fetches addresses on request, converts recordings, and
has grown routes that use its owner's Hugging Face token. What is not listed here answers 404,
whatever a later version adds.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_API = "/gradio_api"
_GET = frozenset(
    {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"}
    | {f"{_API}/{name}" for name in ("info", "queue/data", "upload_progress")}
)
_GET_BELOW = ("/assets/", "/static/", f"{_API}/heartbeat/")
_FILE = f"{_API}/file="
_UPLOAD = f"{_API}/upload"
_POST_JSON = frozenset(
    f"{_API}/{name}" for name in ("queue/join", "run/predict", "cancel", "reset")
)
_MAX_JSON = 2**20
"""Bytes of a question: a text, and names of images. It is held in memory, unlike an upload."""


class GradioAllowlist:
    """Passes on what the page needs, to Gradio's application (ASGI).

    A file is always an upload: where a request names another one, or an address for Gradio to
    fetch, it is refused.

    Args:
        app: Gradio's.
        uploads: the folder that it keeps uploads in.

    Attributes:
        app: as given.
    """

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        self.app = app
        self._uploads = PurePosixPath(uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the app answer it."""
        if scope["type"] == "http":
            if not self._is_needed(scope["method"], scope["path"]):
                await _refuse(404, "there is nothing here", scope, receive, send)
                return
            if scope["path"] in _POST_JSON:
                await self._question(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_needed(self, method: str, path: str) -> bool:
        if method == "POST":
            return path == _UPLOAD or path in _POST_JSON
        if method != "GET":
            return False
        if path.startswith(_FILE):
            return self._is_upload(path.removeprefix(_FILE))
        return path in _GET or path.startswith(_GET_BELOW)

    def _is_upload(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        parts = PurePosixPath(path)
        return parts.is_relative_to(self._uploads) and ".." not in parts.parts

    async def _question(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MAX_JSON:
                await _refuse(413, "a question may have 1 MiB at most", scope, receive, send)
                return
        try:
            asked = json.loads(body)
            # Serialised again, so that Gradio parses exactly what was checked here.
            body = json.dumps(asked).encode()
        except (ValueError, RecursionError):
            await _refuse(400, "this is no JSON", scope, receive, send)
            return
        if not all(map(self._is_upload, _paths(asked))):
            await _refuse(400, "files are uploaded first", scope, receive, send)
            return
        named = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope = {**scope, "headers": [*named, (b"content-length", str(len(body)).encode())]}
        given = False

        async def checked_body() -> Message:
            """The request's body as it was checked, then what the client sends later."""
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, checked_body, send)


def _paths(value: Any) -> list[object]:
    """Whatever is called ``path`` anywhere in it: by this Gradio knows a file."""
    paths: list[object] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            paths += [item["path"]] if "path" in item else []
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return paths


async def _refuse(status: int, why: str, scope: Scope, receive: Receive, send: Send) -> None:
    # The rest of a refused request is not read, so this connection is of no further use.
    answer = PlainTextResponse(f"{why}\n", status, headers={"connection": "close"})
    await answer(scope, receive, send)
