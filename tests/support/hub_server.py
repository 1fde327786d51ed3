"""A stand-in for the Hugging Face hub on the loopback interface, as unreliable as the network.

It answers what the hub's library asks: a repository's commit, its tree, and its files with ranges.
``/plain/NAME`` serves the same files as any web server does.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "owner/shards"
COMMIT = "c0ffee" + "0" * 34
_CHUNK = 16 * 1024


class HubServer(ThreadingHTTPServer):
    """Serves ``files``; the other attributes make it fail.

    Attributes:
        repo: what the repository is called.
        files: name to content; names that end in .tar are large files (LFS), with a SHA-256.
        asked: requests by path; ``sent``: bytes of files that were sent.
        refuse: how many requests each get 429, with Retry-After 0.
        break_off: how many answers with a file stop after one chunk.
        swapped: name to the content that is sent instead (with the hash of the right one).
        slow_s: pause after each chunk of a file.
        status: name to the status with which it is refused.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.repo = REPO
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.sent = 0
        self.refuse = 0
        self.break_off = 0
        self.swapped: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.slow_s = 0.0
        self.closing = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, name: str) -> bool:
        """One of the faults that are to happen so many times."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked[path] += 1
        repo = self.server.repo
        if self.server.take("refuse"):
            self._send(429, b"slow down", {"Retry-After": "0"})
        elif path in (f"/api/datasets/{repo}", f"/api/datasets/{repo}/revision/{COMMIT}"):
            self._json({"id": repo, "sha": COMMIT, "siblings": [], "private": False})
        elif path == f"/api/datasets/{repo}/tree/{COMMIT}":
            self._json([_entry(name, data) for name, data in self.server.files.items()])
        elif path.startswith(resolve := f"/datasets/{repo}/resolve/{COMMIT}/"):
            self._file(path.removeprefix(resolve), body)
        elif path.startswith("/plain/"):
            self._file(path.removeprefix("/plain/"), body)
        else:
            self._send(404, b"no such thing", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, body: bool) -> None:
        server = self.server
        data = server.swapped.get(name, server.files.get(name))
        if data is None or name in server.status:
            self._send(server.status.get(name, 404), b"no")
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        wanted = self.headers.get("Range", "")
        begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if self.headers.get("If-Range", etag) != etag:
            begin, wanted = 0, ""
        server.ranges.append(wanted)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if not body:
            return
        breaks = server.take("break_off")
        for at in range(begin, len(data), _CHUNK):
            self.wfile.write(data[at : at + _CHUNK])
            self.wfile.flush()
            server.sent += len(data[at : at + _CHUNK])
            if breaks or server.closing.is_set():
                self.close_connection = True
                return
            if server.slow_s:
                server.closing.wait(server.slow_s)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the client is gone, most often because it was killed


def _entry(name: str, data: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(".tar"):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[HubServer]:
    """A running one."""
    with HubServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
