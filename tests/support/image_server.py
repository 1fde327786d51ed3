"""A web server on the loopback interface that behaves as badly as the web."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def jpeg(number: int) -> bytes:
    """A picture of its own for each number, wider than high."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((90, 60)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


class ImageServer(ThreadingHTTPServer):
    """Answers ``/KIND/NUMBER``; ``asked`` counts the requests by path.

    Kinds: ``good``, ``gone`` (404), ``slow`` (says nothing until the server closes), ``cut``
    (half a JPEG), ``page`` (HTML), and ``held`` (good once ``gate`` is set).
    """

    daemon_threads = True
    request_queue_size = 128  # five, the default, is fewer than there are threads that ask

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        self.closing = threading.Event()

    def url(self, kind: str, number: int) -> str:
        """Address of an answer."""
        return f"http://127.0.0.1:{self.server_address[1]}/{kind}/{number}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, ImageServer)
        server.asked[self.path] += 1
        _, kind, number = self.path.split("/")
        if kind == "slow":
            server.closing.wait(60)
            return
        if kind == "gone":
            self.send_error(404)
            return
        if kind == "held":
            while not (server.gate.wait(0.1) or server.closing.is_set()):
                pass
        body = {"cut": jpeg(int(number))[:300], "page": b"<html>gone</html>"}.get(
            kind, jpeg(int(number))
        )
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def image_server() -> Iterator[ImageServer]:
    server = ImageServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
