"""Who may talk to page and API, and how much they may send: an ASGI layer around everything."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

API_PREFIX = "/v1/"
"""Below it programs ask, in JSON (``chat.api``)."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Gradio's page is made of inline scripts and evaluates its own templates. What matters is that
# nothing is loaded from or sent to anywhere else, whatever a model says or a library contains.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_ASK = """<!doctype html><html lang="en"><title>mgpt4</title>
<body style="font: 16px system-ui, sans-serif; margin: 4rem auto; max-width: 30rem">
<h1>mgpt4 serve</h1><p>{said}</p><form><label>Token, as <code>mgpt4 serve</code> printed it:<br>
<input name="token" type="password" autofocus size="40"></label> <button>Enter</button></form>
"""


class _TooMuch(Exception):
    """The body is longer than the largest upload."""


class Guard:
    """Lets pass what may pass, and puts headers on every answer.

    Args:
        app: what is guarded.
        token: must come along as a cookie, ``Authorization: Bearer`` or once as ``?token=``;
            None lets everybody in.
        hosts: names by which the server may be called, so that no other site's name can be made
            to point at it; None allows all.
        max_body: bytes of a request at most.
        cookie: name of the cookie; two servers on one host need two.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        hosts: frozenset[str] | None,
        max_body: int,
        cookie: str = "mgpt4_token",
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._max_body = max_body
        self._cookie = cookie

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or let the app answer it (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # the page needs no web sockets
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            refusal = f"this server answers to {known}, not to {_name(host)!r}"
            await _refuse(scope, send, 421, refusal)
            return
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            await _refuse(scope, send, 403, "requests from other sites are not answered")
            return
        if self._token is not None and not self._knows(headers):
            await self._let_in(scope, send)
            return
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            await _refuse(scope, send, 413, self._too_much())
            return
        await self._pass_on(scope, receive, send)

    def _knows(self, headers: dict[bytes, str]) -> bool:
        kind, _, bearer = headers.get(b"authorization", "").partition(" ")
        try:
            morsel = SimpleCookie(headers.get(b"cookie", "")).get(self._cookie)
        except CookieError:
            morsel = None
        given = [bearer] if kind.lower() == "bearer" else []
        given += [morsel.value] if morsel is not None else []
        return any(self._is_token(value) for value in given)

    def _is_token(self, given: str) -> bool:
        # In constant time: the time until the first difference would reveal how much was right.
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    async def _let_in(self, scope: MutableMapping[str, Any], send: Send) -> None:
        if _is_api(scope):
            await _refuse(scope, send, 401, "the token is wrong or missing", "invalid_api_key")
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if given and self._is_token(given[-1]):
            cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Lax"
            # Not to the path that was asked for: //other.site/ would lead away from this server.
            back = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
            await _reply(send, 303, "", back)
            return
        said = "This is not the token." if given else "This server asks for a token."
        await _reply(send, 401, _ASK.format(said=escape(said)), kind="text/html")

    def _too_much(self) -> str:
        return f"a request may have {self._max_body / 2**20:.0f} MiB at most"

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        taken, begun = 0, False

        async def limited_receive() -> Message:
            """Receive a part of the body; raise ``_TooMuch`` above the limit."""
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise _TooMuch
            return message

        async def send_with_headers(message: Message) -> None:
            """Send a message; the first of an answer gets the security headers."""
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, limited_receive, send_with_headers)
        except _TooMuch:
            if not begun:
                await _refuse(scope, send, 413, self._too_much())


async def _refuse(
    scope: MutableMapping[str, Any], send: Send, status: int, text: str, code: str | None = None
) -> None:
    if not _is_api(scope):
        await _reply(send, status, f"{text}\n")
        return
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": code}
    await _reply(send, status, json.dumps({"error": error}), kind="application/json")


def _is_api(scope: MutableMapping[str, Any]) -> bool:
    return bool(scope["path"].startswith(API_PREFIX))


async def _reply(
    send: Send,
    status: int,
    text: str,
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    kind: str = "text/plain",
) -> None:
    # The rest of a refused request is not read, so this connection is of no further use.
    start = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"connection", b"close")]
    start += [*_HEADERS, *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": text.encode()})


def _name(host: str) -> str:
    """Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
