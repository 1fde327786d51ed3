"""The page as it is served, up to the port."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mgpt4_hpc.chat import server


@pytest.mark.slow
def test_silent_clients_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are closed, before their first request and before a second one."""
    monkeypatch.setattr(server, "_REQUEST_S", 1.0)
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
            seen.append(httpx.get(f"http://127.0.0.1:{port}/", timeout=30, trust_env=False).text)
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
