"""A TCP proxy that misbehaves on order, between a client and an HTTP server on loopback.

It reads whole requests, asks its `rule` for the fate of each, and keeps a list of what it saw.
It knows just enough of HTTP/1.1 for that: requests with a Content-Length or no body.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_CHUNK_BYTES: Final = 65536
_JOIN_S: Final = 5.0


class Fate(enum.Enum):
    """What happens to one request."""

    PASS = "pass"
    REFUSE = "refuse"  # the connection ends, the server never hears of it
    LOSE_ANSWER = "lose-answer"  # the server does it; its answer is lost with the connection
    SWALLOW = "swallow"  # nothing is forwarded, nothing is answered, the connection stays open
    HOLD = "hold"  # the connection ends; `deliver_held` brings the request to the server later


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sent it."""

    line: str
    body: bytes
    raw: bytes

    @property
    def path(self) -> str:
        """The path of the URL."""
        return self.line.split(" ")[1]

    @property
    def is_swap(self) -> bool:
        """Tell a transaction that changes something only if nobody else did."""
        return self.path.endswith("/kv/txn") and b'"MOD"' in self.body

    @property
    def is_watch(self) -> bool:
        """Tell a request that opens a watch."""
        return self.path.endswith("/watch")


Rule = Callable[[Request], Fate]


class Proxy:
    """Listens on its own port, forwards to `port`."""

    def __init__(self, port: int) -> None:
        self.rule: Rule = lambda _: Fate.PASS
        self.requests: list[Request] = []
        self.held: list[Request] = []
        self._upstream = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """End every connection at once."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def deliver_held(self) -> list[bytes]:
        """Bring the held requests to the server now; return the beginnings of its answers."""
        held, self.held = self.held, []
        answers = []
        for request in held:
            with socket.create_connection(self._upstream, timeout=10) as upstream:
                upstream.sendall(request.raw)
                answers.append(upstream.recv(_CHUNK_BYTES))
        return answers

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._spawn(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        with client, self._tracked(client), contextlib.suppress(OSError):
            upstream = socket.create_connection(self._upstream, timeout=10)
            upstream.settimeout(None)
            with upstream, self._tracked(upstream):
                losing = threading.Event()
                self._spawn(lambda: _pump(upstream, client, losing))
                for request in _requests(client):
                    self.requests.append(request)
                    if not self._forward(request, upstream, losing):
                        break
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
                    client.shutdown(socket.SHUT_RDWR)

    def _forward(self, request: Request, upstream: socket.socket, losing: threading.Event) -> bool:
        """Do what the rule says; False when the connection has to end."""
        fate = self.rule(request)
        if fate is Fate.HOLD:
            self.held.append(request)
        if fate in {Fate.HOLD, Fate.REFUSE}:
            return False
        if fate is Fate.LOSE_ANSWER:
            losing.set()
        if fate in {Fate.PASS, Fate.LOSE_ANSWER}:
            upstream.sendall(request.raw)
        return True

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)


@contextlib.contextmanager
def running_proxy(port: int) -> Iterator[Proxy]:
    """Give a proxy in front of 127.0.0.1:`port` and end it."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


def _pump(upstream: socket.socket, client: socket.socket, losing: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := upstream.recv(_CHUNK_BYTES):
            if losing.is_set():
                break
            client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _requests(client: socket.socket) -> Iterator[Request]:
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = client.recv(_CHUNK_BYTES)
            if not more:
                return
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])
        }
        size = int(headers.get("content-length", "0"))
        while len(rest) < size:
            more = client.recv(_CHUNK_BYTES)
            if not more:
                return
            rest += more
        body, data = rest[:size], rest[size:]
        yield Request(lines[0], body, head + b"\r\n\r\n" + body)
