"""A proxy between a client and the S3 server that counts requests and makes some of them fail, in every way they do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

STATUSES = (500, 503, 429)
#: What may happen to any request, and what to the body of an answer.
REQUEST_FAULTS = ("500", "503", "429", "reset", "lost")
BODY_FAULTS = ("truncated", "shortened", "corrupted", "drip")
_DRIP_SECONDS = 0.1


class FaultyProxy:
    """Context manager; ``port`` is where it listens on 127.0.0.1."""

    def __init__(self, upstream: int, rate: float = 0.0, faults: tuple[str, ...] | None = None, seed: int = 0) -> None:
        """``rate``: share of the requests that fail. ``faults``: only these kinds."""
        self.upstream, self.rate, self.faults = upstream, rate, faults
        self.requests: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def choose(self, method: str, path: str) -> str:
        """What happens to this request: a fault's name, or nothing."""
        with self._lock:
            self.requests[method] += 1
            if method == "GET" and "/shards/" in path:
                self.fetched[path.partition("?")[0]] += 1
            if self._random.random() >= self.rate:
                return ""
            possible = REQUEST_FAULTS + (BODY_FAULTS if method == "GET" else ())
            fault = self._random.choice([name for name in possible if not self.faults or name in self.faults] or [""])
            self.failed[fault] += 1
            return fault

    def between(self, low: int, high: int) -> int:
        """A random number from ``low`` up to ``high``, which isn't included."""
        with self._lock:
            return self._random.randrange(low, max(low + 1, high))


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.choose(self.command, self.path)
        if fault.isdecimal():
            return self._answer(int(fault), [], b"<Error><Code>Injected</Code><Message>by the test</Message></Error>")
        if fault == "reset":
            return self._reset()
        status, headers, body = self._forward(sent)
        if fault == "lost":  # done, but the client gets no answer
            return self._reset()
        if status != 200 or len(body) < 2:
            fault = ""
        if fault == "corrupted":
            place = self.owner.between(0, len(body))
            body = body[:place] + bytes([body[place] ^ 0x40]) + body[place + 1 :]
        if fault == "shortened":
            body = body[: self.owner.between(1, len(body))]
        self._answer(status, headers, body, fault)
        return None

    def _forward(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(sent)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, answer.getheaders(), body
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str = "") -> None:
        self.send_response_only(status)
        kept = [
            pair for pair in headers if pair[0].lower() not in ("connection", "transfer-encoding", "content-length")
        ]
        is_head = self.command == "HEAD"
        stated = next((value for name, value in headers if name.lower() == "content-length"), "0")
        for name, value in [*kept, ("Content-Length", stated if is_head else str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if is_head:
            return
        if fault == "truncated":
            self.wfile.write(body[: self.owner.between(0, len(body))])
            self._reset()
        elif fault == "drip":
            for place in range(0, len(body), 16):
                self.wfile.write(body[place : place + 16])
                time.sleep(_DRIP_SECONDS)
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # a client that gave up, or a connection that we reset
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle
