"""A stand-in for object storage: HTTP with Range requests, latency, a bandwidth limit, and the faults of servers"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 1 << 16


@dataclass
class Behaviour:
    """Seconds, bytes per second, and shares of the requests.

    Attributes:
        fail_next: so many requests fail (503) before one is answered.
        fails, cuts, stalls: shares that fail, end in the middle of the body, or send no byte at all.
    """

    latency: float = 0.0
    bandwidth: float = float("inf")
    ranges: bool = True
    fail_next: int = 0
    fails: float = 0.0
    cuts: float = 0.0
    stalls: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def fault(self) -> str | None:
        if self.fail_next > 0:
            self.fail_next -= 1
            return "fail"
        drawn = self.chance.random()
        if drawn < self.fails:
            return "fail"
        if drawn < self.fails + self.cuts:
            return "cut"
        return "stall" if drawn < self.fails + self.cuts + self.stalls else None


class ObjectStore(ThreadingHTTPServer):
    """`body(name)`: the content, None where there is none; called once a request.

    Attributes:
        sent: bytes of bodies. again: of those that had been sent whole before.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, body: Callable[[str], bytes | None], behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.behaviour = body, behaviour
        self.sent = self.again = self.requests = self.faults = 0
        self.whole: set[tuple[str, int, int]] = set()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._free = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients go away as they like."""

    def wait_for_the_wire(self, size: int) -> None:
        """All bodies share one wire."""
        with self.lock:
            now = time.monotonic()
            self._free = max(self._free, now) + size / self.behaviour.bandwidth
            until = self._free
        if until - now > 0.002:
            self.closing.wait(until - now)


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"  # keeps connections, as object stores do
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        behaviour = self.server.behaviour
        with self.server.lock:
            fault = behaviour.fault()
            self.server.requests += 1
            self.server.faults += fault is not None
        if behaviour.latency:
            self.server.closing.wait(behaviour.latency)
        if fault == "stall":
            self.server.closing.wait()
        content = self.server.body(self.path.lstrip("/"))
        if content is None or fault == "fail":
            self.send_error(404 if content is None else 503)
            self.close_connection = True
            return
        total, first, last = len(content), 0, len(content) - 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if behaviour.ranges else None
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", '"v1"')
        if behaviour.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        if not body:
            return
        if fault == "cut":
            last = (first + last) // 2
            self.close_connection = True
        for start in range(first, last + 1, PIECE):
            piece = memoryview(content)[start : min(start + PIECE, last + 1)]
            self.server.wait_for_the_wire(len(piece))
            self.wfile.write(piece)
            with self.server.lock:
                self.server.sent += len(piece)
        if fault is None:
            body_sent = (self.path, first, last)
            with self.server.lock:
                self.server.again += (last + 1 - first) * (body_sent in self.server.whole)
                self.server.whole.add(body_sent)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(body: Callable[[str], bytes | None], behaviour: Behaviour) -> Iterator[ObjectStore]:
    """The store, answering in threads of this process."""
    with ObjectStore(body, behaviour) as store:
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield store
        finally:
            store.closing.set()
            store.shutdown()
            thread.join()


def folder(path: Path) -> Callable[[str], bytes | None]:
    """The files of a folder."""

    def body(name: str) -> bytes | None:
        file = path / name
        return file.read_bytes() if file.is_file() else None

    return body
