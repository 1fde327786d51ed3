"""The web page and the API on a port, until a signal comes; nothing of it is left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.chat.access_control import LOOPBACK_NAMES, Guard
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.chat.shared_model import MAX_IMAGES, SharedModel
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.model.generation.sampling import Sampling

if TYPE_CHECKING:
    from mgpt4_hpc.chat.gradio_allowlist import GradioAllowlist

_STOP_S = 3
"""Seconds that open connections get when the server stops; browsers hold theirs for ever."""
_SWEEP_S = 60
_REQUEST_S = 20.0
"""Time for the head of a request, which is some hundred bytes."""
_UPLOAD_AGE_S = 600.0
"""An upload without a question is deleted after this time."""
_BODY_SLACK = 2**20
"""Room beside the images themselves in an upload."""


def require_gradio() -> None:
    """Raises PreflightError, naming the extra, unless Gradio is installed."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise PreflightError("the web page needs gradio", fix="pip install 'mgpt4-hpc[web]'")


@dataclass(frozen=True)
class Endpoint:
    """Where the server is reached, and by whom.

    Attributes:
        host: address that it listens on.
        listener: listens already; closed at the end.
        token: required of every client; None admits all that reach the port.
    """

    host: str
    listener: socket.socket
    token: str | None

    @property
    def port(self) -> int:
        """The listener's."""
        return int(self.listener.getsockname()[1])


def serve(
    shared_model: SharedModel,
    sampling: Sampling,
    limits: Limits,
    endpoint: Endpoint,
    *,
    page: bool = True,
    api: bool = False,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve page, API or both until TERM, INT or HUP; then break off, close and clean up.

    Args:
        shared_model: answers.
        sampling: where the sliders stand at first, and what API requests leave open.
        limits: what a visitor may send.
        endpoint: where and to whom.
        page: with the page.
        api: with the API.
        on_ready: called once it answers.
    """
    from starlette.applications import Starlette

    from mgpt4_hpc.chat.api.app import Api, WithApi

    host, port = endpoint.host, endpoint.port
    with _uploads_folder() as uploads:
        try:
            app: Any = Starlette()  # answers 404
            if page:
                app = build_application(shared_model, sampling, limits, uploads, host, port)
            if api:
                app = WithApi(Api(shared_model, sampling, limits).application(), app)
            guard = Guard(
                app,
                token=endpoint.token,
                hosts=LOOPBACK_NAMES if host in LOOPBACK_NAMES else None,
                # Images that are dropped together come together; Gradio writes them to files, and
                # holds each to its own limit.
                max_body=MAX_IMAGES * limits.max_bytes + _BODY_SLACK,
                cookie=f"mgpt4_token_{port}",
            )
            _run(guard, shared_model, uploads, endpoint.listener, on_ready)
        finally:
            shared_model.close()


@contextmanager
def _uploads_folder() -> Iterator[Path]:
    """A folder for what Gradio and others put aside, which goes with all that is in it."""
    uploads = Path(tempfile.mkdtemp(prefix="mgpt4-serve-")).resolve()
    before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(uploads)
    try:
        yield uploads
    finally:
        shutil.rmtree(uploads, ignore_errors=True)
        tempfile.tempdir = before[1]
        if before[0] is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before[0]


def build_application(
    shared_model: SharedModel,
    sampling: Sampling,
    limits: Limits,
    uploads: Path,
    host: str,
    port: int,
) -> GradioAllowlist:
    """The page as a web application, without the parts of Gradio that it does not use."""
    # Read when Gradio is imported: no calls home.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Not as an argument, which older versions do not know. It keeps conversations in the browser,
    # and has routes that use the Hugging Face token of the user who started the server.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    import gradio as gr
    from fastapi import FastAPI

    from mgpt4_hpc.chat.gradio_allowlist import GradioAllowlist
    from mgpt4_hpc.chat.page import HEAD, STYLE, build_page

    page = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(shared_model, sampling, limits, uploads),
        path="/",
        server_name=host,
        server_port=port,
        show_error=False,
        max_file_size=limits.max_bytes,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        css=STYLE,
        head=HEAD,
    )
    return GradioAllowlist(page, uploads)


def _protocol() -> type[asyncio.Protocol]:
    """Uvicorn's HTTP, without connections that never finish a request's head.

    Each holds a file descriptor, and without this a thousand of them shut everybody else out.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        _seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            """Start the timer that closes the connection if it stays idle."""
            super().connection_made(transport)
            self._look_later()

        def _look_later(self) -> None:
            self.loop.call_later(_REQUEST_S, self._look)

        def _look(self) -> None:
            if self.transport.is_closing():
                return
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._seen:
                self.transport.close()
                return
            self._seen = self.cycle
            self._look_later()

    return Impatient


def _run(
    guard: Guard,
    shared_model: SharedModel,
    uploads: Path,
    listener: socket.socket,
    on_ready: Callable[[], None],
) -> None:
    """Answer until a signal comes."""
    import uvicorn

    async def sweep() -> None:
        """Delete the uploads that are older than ``_UPLOAD_AGE_S``."""
        delete_older(uploads, _UPLOAD_AGE_S)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:
            """Call ``on_ready`` once the server accepts connections."""
            await super().startup(sockets=sockets)
            if self.started:
                on_ready()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End the answers in progress, which the server would wait for."""
            shared_model.close()
            super().handle_exit(sig, frame)

    logging.getLogger("uvicorn.error").addFilter(_not_a_stop)
    config = uvicorn.Config(
        guard,
        http=_protocol(),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_STOP_S,
        timeout_notify=_SWEEP_S,
        callback_notify=sweep,
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _signals_end_quietly():
        Server(config).run(sockets=[listener])


def delete_older(folder: Path, age_s: float) -> None:
    """Delete the files below a folder that were not touched for ``age_s`` seconds."""
    oldest = time.time() - age_s
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue


def _not_a_stop(record: logging.LogRecord) -> bool:
    """Leave out that connections of open pages were cut at the end: that is what a stop does."""
    cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and "timeout graceful shutdown exceeded" not in record.getMessage()


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """The signal that stopped uvicorn is raised by it once more; we still have to clean up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    # A terminal that is gone ends the server as Ctrl-C does.
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
