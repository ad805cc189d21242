"""A web server on localhost that serves ranges of files in memory, counts what it sends, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Odd = Callable[["Handler", str, bytes], bool]  # True: it has answered


@lru_cache
def checksum(data: bytes) -> str:
    """A strong ETag."""
    return f'"{hashlib.md5(data).hexdigest()}"'


class RangeServer(ThreadingHTTPServer):
    """`files` by path; `nbytes`, `requests` and `busiest` count answers with data."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: Mapping[str, bytes], lists: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.lists = dict(files), lists
        self.lock = threading.Lock()
        self.odd: Odd | None = None
        self.model: dict[str, object] | None = None  # what the hub's API says of org/name
        self.reset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self) -> None:
        """Count anew."""
        self.nbytes, self.requests, self.busiest, self.busy = 0, [], 0, 0  # type: int, list[tuple[str, str]], int, int
        self.tokens: set[str] = set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        path, server = unquote(urlsplit(self.path).path), self.server
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            server.requests.append((path, self.headers.get("Range", "")))
            server.tokens.add(self.headers.get("Authorization", ""))
        try:
            self._get(path)
        finally:
            with server.lock:
                server.busy -= 1

    def _get(self, path: str) -> None:
        server = self.server
        if path.startswith("/api/models/") and server.model is not None:
            return self.send(200, json.dumps(server.model).encode(), {"Content-Type": "application/json"})
        path = re.sub(r"^/org/name/resolve/[^/]+", "", path)
        data = server.files.get(path)
        if path.endswith("/") and server.lists:
            below = {name.removeprefix(path) for name in server.files if name.startswith(path)}
            names = sorted({name.split("/")[0] + ("/" if "/" in name else "") for name in below})
            links = "".join(f'<li><a href="{name}">{name}</a></li>' for name in ["../", *names])
            return self.send(200, f"<html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"})
        if data is None:
            return self.send(404, b"nothing here")
        if server.odd is not None and server.odd(self, path, data):
            return None
        return self.serve(data)

    def serve(self, data: bytes, etag: str | None = None, claim: int = 0) -> None:
        """The range that was asked for; `claim` more bytes are promised than come."""
        etag = checksum(data) if etag is None else etag
        headers = {"ETag": etag} if etag else {}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            return self.send(200, data, headers)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first >= len(data):
            return self.send(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        part = data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        with self.server.lock:
            self.server.nbytes += len(part)
        return self.send(206, part[: len(part) - claim], headers, claim)

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, claim: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + claim))
        self.end_headers()
        self.wfile.write(body)
        if claim:
            self.close_connection = True


@contextmanager
def serving(files: Mapping[str, bytes], lists: bool = True) -> Iterator[RangeServer]:
    server = RangeServer(files, lists)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
