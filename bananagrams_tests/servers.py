"""Local HTTP server with configurable, including faulty, responses."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", int], None]
"""Called with the request and the number of earlier requests for its path."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.sent_bytes: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors other than closed connections, which the tests provoke."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        before = self.server.requests[self.path]
        self.server.requests[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        try:
            self.server.answers.get(self.path, status(404))(self, before)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def reply(self, code: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: tests read `requests`."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()


def status(code: int, body: bytes = b"", /, **headers: str) -> Answer:
    return lambda request, before: request.reply(code, body, **headers)


def body(data: bytes) -> Answer:
    return status(200, data, Content_Type="image/jpeg")


def failing_first(times: int, code: int, then: bytes, **headers: str) -> Answer:
    """Answer `code` `times` times, then `then`."""

    def answer(request: Handler, before: int) -> None:
        if before < times:
            request.reply(code, **headers)
        else:
            request.reply(200, then)

    return answer


def conditional(data: bytes, **validators: str) -> Answer:
    """Answer 304 to a request that carries these validators (`ETag`, `Last_Modified`), else `data`."""

    def answer(request: Handler, before: int) -> None:
        received = {
            "ETag": request.headers.get("If-None-Match"),
            "Last_Modified": request.headers.get("If-Modified-Since"),
        }
        if validators and all(received[name] == value for name, value in validators.items()):
            request.reply(304, **validators)
            return
        request.server.sent_bytes[request.path] += len(data)
        request.reply(200, data, **validators)

    return answer


def cut_first(times: int, data: bytes) -> Answer:
    """Announce all of `data` and close the connection half-way, `times` times, then answer fully."""

    def answer(request: Handler, before: int) -> None:
        if before >= times:
            request.reply(200, data)
            return
        request.reply(200, data[: len(data) // 2], Content_Length=str(len(data)))
        request.close_connection = True

    return answer


def endless(request: Handler, before: int) -> None:
    """Send without a declared length until the client disconnects."""
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    request.close_connection = True
    while not request.server.stopping.is_set():
        request.wfile.write(b"\xff\xd8" * 2**15)
        request.server.sent_bytes[request.path] += 2**16


def stalled(request: Handler, before: int) -> None:
    """Send two bytes, then nothing until the server stops."""
    request.reply(200, b"\xff\xd8", Content_Length="1000")
    request.server.stopping.wait()


def drip(request: Handler, before: int) -> None:
    """Send one byte every 50 ms, so that no single read times out."""
    request.reply(200, b"", Content_Length="1000000")
    while not request.server.stopping.wait(0.05):
        request.wfile.write(b"\xff")


def http_date(in_s: float) -> str:
    """Return the HTTP date `in_s` seconds from now."""
    return formatdate(time.time() + in_s, usegmt=True)
