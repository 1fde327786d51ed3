"""A web server that stands for a file host and for the Hugging Face hub, and behaves as badly.

Under ``/files/NAME`` it serves the folder's files with ranges; under ``/api`` and ``/REPO/resolve``
what huggingface_hub asks. ``faults`` holds what goes wrong next with a path: a status, ``"page"``
(a web page instead of the file), ``"cut"`` (half of what was announced), ``"short"`` (half of it,
announced as all).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html>Sorry, the quota is exceeded.</html>"


class WeightsServer(ThreadingHTTPServer):
    """Serves ``folder``; its folder ``llm`` is the repository ``some/llm``.

    Attributes:
        faults: by path, the answers that come before the right one.
        asked: requests by path; ``sent``: bytes of answers.
        bytes_per_s: a brake; 0 for none.
        token: what a gated repository wants; "" for none.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[int | str]] = {}
        self.asked: Counter[str] = Counter()
        self.sent = 0
        self.bytes_per_s = 0
        self.token = ""
        self.publishes_hashes = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are the point; say nothing."""


class _Handler(BaseHTTPRequestHandler):
    server: WeightsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += body
        if not path.startswith("/files") and self.server.token not in (
            "",
            self.headers.get("Authorization", "").removeprefix("Bearer "),
        ):
            self._plain(401, b"gated", {"X-Error-Code": "GatedRepo"})
            return
        if path.startswith("/api/models/some/llm/tree/"):
            self._plain(200, json.dumps(self._tree()).encode(), {})
            return
        if path.startswith("/api/models/some/llm"):
            self._plain(200, json.dumps(self._info()).encode(), {})
            return
        found = re.match(r"/some/llm/resolve/[^/]+/(.+)", path)
        file = self.server.folder / (f"llm/{found[1]}" if found else path.removeprefix("/files/"))
        if not file.is_file():
            self._plain(404, b"no", {"X-Error-Code": "EntryNotFound"})
            return
        waiting = self.server.faults.get(path, [])
        fault = waiting.pop(0) if waiting and body else None
        if isinstance(fault, int):
            self._plain(fault, b"no", {"Retry-After": "0"} if fault == 429 else {})
        elif fault == "page":
            self._plain(200, PAGE, {"Content-Type": "text/html"})
        else:
            self._file(file, body, fault)

    def _info(self) -> dict[str, object]:
        siblings = []
        for path in sorted((self.server.folder / "llm").iterdir()):
            entry: dict[str, object] = {"rfilename": path.name, "size": path.stat().st_size}
            if path.suffix in (".safetensors", ".bin", ".model"):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": path.stat().st_size, "pointerSize": 130}
            siblings.append(entry)
        return {"id": "some/llm", "modelId": "some/llm", "sha": COMMIT, "siblings": siblings,
                "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def _tree(self) -> list[dict[str, object]]:
        found = []
        for path in sorted((self.server.folder / "llm").iterdir()):
            oid = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
            size = path.stat().st_size
            found.append({"type": "file", "path": path.name, "size": size, "oid": oid})
        return found

    def _plain(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _file(self, file: Path, body: bool, fault: str | None) -> None:
        data = file.read_bytes()
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        if fault == "short":
            data = data[: len(data) // 2]
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start and start >= len(data):
            self._plain(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if self.server.publishes_hashes:
            self.send_header(
                "x-goog-hash", f"crc32c=AAAAAA==, md5={base64.b64encode(digest).decode()}"
            )
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        data = data[start:]
        for offset in range(0, len(data), 64 * 1024):
            piece = data[offset : offset + 64 * 1024]
            if fault == "cut" and offset + len(piece) > len(data) // 2:
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(piece)
            self.server.sent += len(piece)
            if self.server.bytes_per_s:
                time.sleep(len(piece) / self.server.bytes_per_s)


@contextmanager
def weights_server(folder: Path) -> Iterator[WeightsServer]:
    """A server of the folder's files while the block runs."""
    server = WeightsServer(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
