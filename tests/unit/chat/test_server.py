"""The page as it is served, up to the port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mgpt4_hpc.chat import server
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.model.generation.sampling import Sampling

MIB = 2**20


def test_images_that_are_dropped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []

    def run(guard: Any, *rest: Any) -> None:
        async def upload(sizes: Sequence[int]) -> int:
            files = [("files", (f"{size}.jpg", bytes(size))) for size in sizes]
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(guard), base_url="http://localhost"
            )
            async with client:
                return (await client.post("/gradio_api/upload", files=files)).status_code

        small = MIB - 10
        for sizes in ([small] * 3, [small] * 16, [small, MIB + 1], [small] * 18):
            statuses.append(asyncio.run(upload(sizes)))

    monkeypatch.setattr(server, "_run", run)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.serve(
            SimpleNamespace(speakers=["one"], close=lambda: None),  # type: ignore[arg-type]
            Sampling(),
            Limits(MIB, 10**6, 64),
            server.Endpoint("127.0.0.1", listener, None),
        )
    assert statuses == [200, 200, 413, 413]


def test_silent_clients_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are closed, before their first request and before a second one."""
    monkeypatch.setattr(server, "_REQUEST_S", 0.2)
    seen: list[object] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    def visit() -> None:
        try:
            address = ("127.0.0.1", port)
            heads = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"] * 20
            silent = [socket.create_connection(address, timeout=30) for _ in heads]
            for client, head in zip(silent, heads, strict=True):
                client.sendall(head)
            seen.append(httpx.get(f"http://127.0.0.1:{port}/").text)
            for client in silent:
                with suppress(ConnectionResetError):
                    while client.recv(4096):
                        pass
                client.close()
            seen.append("closed")
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    visitor = threading.Thread(target=visit)
    model = SimpleNamespace(close=lambda: None)
    server._run(page, model, Path("/nowhere"), listener, visitor.start)  # type: ignore[arg-type]
    visitor.join(timeout=30)
    assert seen == ["page", "closed"]
