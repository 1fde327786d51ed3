"""Who gets in, by which name, with how much; asked as ASGI, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from mgpt4_hpc.chat.access_control import LOOPBACK_NAMES, Guard

TOKEN = "right-token-1"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of what it was sent."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(method: str = "GET", path: str = "/", *, token: str | None = None, **request: Any):
    guard = Guard(echo, token=token, hosts=LOOPBACK_NAMES, max_body=1000, cookie="t")
    base = request.pop("base", "http://127.0.0.1:7860")

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def test_without_a_token_everybody_gets_in() -> None:
    answer = ask()
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"headers": {"Authorization": "Bearer wrong"}},
        {"headers": {"Authorization": f"Basic {TOKEN}"}},
        {"headers": {"Cookie": "t=wrong"}},
        {"headers": {"Cookie": f"other={TOKEN}"}},
        {"params": {"token": "wrong"}},
        {"params": {"token": ""}},
        {"params": {"token": "\u00fc"}},
        {"headers": {"Cookie": "\x01;;="}},
    ],
    ids=str,
)
def test_without_the_token_nobody_does(request_: dict[str, Any]) -> None:
    answer = ask(token=TOKEN, **request_)
    assert answer.status_code == 401 and TOKEN not in answer.text
    assert "token" in answer.text


@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/%0d%0ax", "/\\evil.example"])
def test_the_way_back_stays_on_this_server(path: str) -> None:
    answer = ask(path=f"http://127.0.0.1:7860{path}?token={TOKEN}", token=TOKEN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_the_token_comes_once_in_the_address_and_then_in_a_cookie() -> None:
    answer = ask(path=f"/?token={TOKEN}", token=TOKEN)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"t={TOKEN};") and "HttpOnly" in cookie and "SameSite" in cookie
    assert ask(token=TOKEN, headers={"Cookie": f"t={TOKEN}"}).status_code == 200
    assert ask(token=TOKEN, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    ("base", "status"),
    [
        ("http://localhost:99", 200),
        ("http://[::1]:99", 200),
        ("http://evil.example", 421),
        ("http://localhost.evil.example:7860", 421),
    ],
)
def test_other_names_are_not_answered(base: str, status: int) -> None:
    assert ask(base=base).status_code == status


def test_other_sites_are_not_answered() -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:80"):
        assert ask("POST", headers={"Origin": origin}).status_code == 403
    assert ask("POST", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200


def test_long_bodies_are_not_read() -> None:
    assert ask("POST", content=bytes(1000)).text == "1000"
    assert ask("POST", content=bytes(1001)).status_code == 413

    async def pieces():
        for _ in range(5):
            yield bytes(300)

    assert ask("POST", content=pieces()).status_code == 413


def test_web_sockets_are_closed() -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(echo, token=None, hosts=None, max_body=1)
    asyncio.run(guard({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
