"""What of Gradio's interface is answered; asked as ASGI, of Gradio itself and of all its routes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mgpt4_hpc.chat.gradio_allowlist import GradioAllowlist
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.chat.server import build_application
from mgpt4_hpc.model.generation.sampling import Sampling

NEEDED = {
    *("GET /", "GET /config", "GET /theme.css", "GET /favicon.ico", "GET /manifest.json"),
    *("GET /assets/{path:path}", "GET /static/{path:path}"),
    *("GET /gradio_api/info", "GET /gradio_api/heartbeat/{session_hash}"),
    *("GET /gradio_api/queue/data", "GET /gradio_api/upload_progress"),
    *("POST /gradio_api/upload", "POST /gradio_api/queue/join", "POST /gradio_api/cancel"),
    *("POST /gradio_api/reset", "POST /gradio_api/run/{api_name}"),
}
"""Asked for by the page in a browser, or by Gradio's own client."""


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def page(uploads: Path) -> Iterator[GradioAllowlist]:
    shared_model: Any = SimpleNamespace(speakers=["one"], visitor=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
        patch.setenv("GRADIO_RUN_HISTORY", "True")
        yield build_application(
            shared_model, Sampling(), Limits(1000, 1000, 64), uploads, "localhost", 1
        )


@pytest.fixture
def allowlist(uploads: Path) -> GradioAllowlist:
    """In front of something that answers to everything, with what it was sent."""

    async def everything(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return GradioAllowlist(everything, uploads)


def ask(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def all_routes(routes: Sequence[Any]) -> Iterator[str]:
    for route in routes:
        # FastAPI keeps an included router as it is, from some version on.
        nested = getattr(route, "original_router", route)
        if inner := getattr(nested, "routes", None):
            yield from all_routes(inner)
        else:
            yield from (f"{method} {route.path}" for method in route.methods)


@pytest.mark.slow
def test_of_all_routes_only_the_needed_ones_are_answered(
    page: GradioAllowlist, allowlist: GradioAllowlist
) -> None:
    routes = set(all_routes(page.app.routes))
    assert len(routes) > 80 and routes >= NEEDED
    assert "GET /gradio_api/file={path_or_url:path}" in routes  # see below
    values = {"api_name": "predict", "path": "index.js"}

    def example(path: str) -> str:
        return re.sub(r"\{(\w+)[^}]*\}", lambda name: values.get(name[1], "some"), path)

    asked = {route: route.partition(" ") for route in routes}
    answers = {
        route: ask(allowlist, method, example(path), content="{}").status_code
        for route, (method, _, path) in asked.items()
    }
    assert {route for route, status in answers.items() if status == 200} == NEEDED
    assert set(answers.values()) == {200, 404}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/run-history/buckets",
        "/gradio_api/runs",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/run/ask",
        "/gradio_api",
        "/gradio_api/heartbeat",
        "//config",
        "/config/",
        "/docs",
        "/nothing",
    ],
)
def test_the_rest_is_not_there(allowlist: GradioAllowlist, path: str) -> None:
    for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS"):
        assert ask(allowlist, method, f"http://localhost{path}").status_code == 404, method


@pytest.mark.slow
def test_files_are_uploads(
    page: GradioAllowlist, allowlist: GradioAllowlist, uploads: Path
) -> None:
    answer = ask(page, "POST", "/gradio_api/upload", files={"files": ("a b.txt", b"seen")})
    (path,) = answer.json()
    assert Path(path).is_relative_to(uploads)
    assert ask(page, "GET", f"/gradio_api/file={path}").text == "seen"
    for other in (
        *("https://example.com/", "HTTP://example.com/", "ftp://x/y", "//example.com/x"),
        *("/etc/passwd", f"{uploads}/../x", f"{uploads}x/y", f"/{uploads}/x", "a.txt", ""),
    ):
        assert ask(allowlist, "GET", f"/gradio_api/file={other}").status_code == 404, other


@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_a_question_is_about_uploads_only(
    allowlist: GradioAllowlist, uploads: Path, route: str
) -> None:
    def status(path: Any) -> int:
        file = {"path": path, "url": "http://localhost/x", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [{"text": "x", "files": [file]}, 0.5], "fn_index": 0}
        return ask(allowlist, "POST", f"/gradio_api/{route}", json=body).status_code

    assert status(f"{uploads}/12ab/photo.jpg") == 200
    for path in ("https://example.com/x.jpg", "file:///etc/passwd", "/etc/passwd", None, ["x"]):
        assert status(path) == 400, path
    twice = '{"data": [{"path": "%s/a", "p\\u0061th": "http://example.com/", "meta": {}}]}'
    answer = ask(allowlist, "POST", f"/gradio_api/{route}", content=twice % uploads)
    assert answer.status_code == 400


def test_what_is_no_question(allowlist: GradioAllowlist) -> None:
    def answer(content: Any) -> httpx.Response:
        return ask(allowlist, "POST", "/gradio_api/queue/join", content=content)

    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        assert answer(content).status_code == 400, content[:9]
    long = json.dumps(["x" * (2**20 - 4)]).encode()
    assert answer(long).content == long
    assert answer(long + b" ").status_code == 413

    async def pieces():
        for _ in range(5):
            yield bytes(2**18)

    assert answer(pieces()).status_code == 413


def test_features_are_off_behind_it_as_well(page: GradioAllowlist) -> None:
    config = ask(page, "GET", "/config").json()
    assert not config.get("run_history")  # gradio has it from 6.24 on
    assert config["analytics_enabled"] is False
    routes = {route.partition(" ")[2] for route in all_routes(page.app.routes)}
    assert not {route for route in routes if "run-history" in route}
    (asking,) = (d["id"] for d in config["dependencies"] if d["api_name"] == "ask")
    question = {"data": [], "fn_index": asking, "session_hash": "s"}
    assert ask(page, "POST", "/gradio_api/run/predict", json=question).status_code == 404
