"""The page refuses uploads beyond the server's limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mgpt4_hpc.chat import server
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.model.generation.sampling import Sampling

MIB = 2**20


@pytest.mark.slow
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
