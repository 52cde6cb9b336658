"""The simulated repository behind a real HTTP server on the loopback; it can be made to misbehave.

A behaviour is a function that gets the request's handler and the honest bytes. Set one for a path
and the client meets it there; all other paths are served honestly.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

from typing_extensions import override

from tests.sim.repository import TufRepository

Behaviour = Callable[[BaseHTTPRequestHandler, bytes], None]

_PAUSE_S: Final = 0.05  # between two bytes of a slow answer: far below every idle limit


class RepositoryServer:
    """Serves `repository.files` until it is left.

    Attributes:
        behaviours: what happens at a path instead of an honest answer.
        asked: the paths that were asked, in order.
        connections: where requests came from.
        headers: the request headers of the last request.
        patient_clients: how many took a slow answer to its end, some 20 seconds.
        stop: set when the server ends; slow behaviours look at it.
    """

    def __init__(self, repository: TufRepository) -> None:
        self.repository = repository
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[str] = []
        self.connections: set[tuple[str, int]] = set()
        self.headers: dict[str, str] = {}
        self.patient_clients = 0
        self.stop = threading.Event()
        self._open: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False  # `server_close` waits for them: no stray threads
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """The URL of the metadata folder."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/metadata/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop.set()
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):  # an idle one of a client that keeps it for later
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60.0  # a client on a busy machine rests long between two questions
            disable_nagle_algorithm = True  # head and body go out at once

            @override
            def setup(self) -> None:
                super().setup()
                served._open.add(self.connection)

            @override
            def finish(self) -> None:
                served._open.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:  # http.server has it so
                path = self.path.lstrip("/")
                served.asked.append(path)
                served.connections.add(self.client_address[:2])
                served.headers = dict(self.headers)
                data = served.repository.files.get(path)
                behaviour = served.behaviours.get(path, honest if data is not None else missing)
                with contextlib.suppress(ConnectionError):
                    behaviour(self, data or b"")

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        return Handler

    def trickle_body(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        """Send one byte now and then, never a whole file."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        self._drip(handler, data)

    def trickle_headers(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        """Never get to the end of the headers, while never being silent."""
        self._drip(handler, b"HTTP/1.1 200 OK\r\nX-Padding: " + data)

    def say_nothing(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG002
        """Take the request and never answer."""
        self.stop.wait()
        handler.close_connection = True

    def stall(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        """Stop in the middle of the body."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        self.say_nothing(handler, data)

    def _drip(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        handler.close_connection = True
        for byte in data:
            if self.stop.wait(_PAUSE_S):
                return
            handler.wfile.write(bytes([byte]))
        self.patient_clients += 1


def honest(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Answer as a good server does."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def missing(handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG001
    """Answer 404 with a page, as web servers do."""
    _page(handler, 404)


def status(code: int) -> Behaviour:
    """Answer with another status and a page."""
    return lambda handler, _data: _page(handler, code)


def redirect(url: str) -> Behaviour:
    """Point to another place."""

    def behave(handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG001
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave


def page(handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG001
    """Answer 200 with HTML, as captive portals do."""
    _page(handler, 200)


def gzipped(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Compress the body although nobody asked for it."""
    body = gzip.compress(data)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def truncated(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Announce all, send all but one byte, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:-1])
    handler.close_connection = True


def endless(handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG001
    """Send without an end and without announcing one."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def huge(handler: BaseHTTPRequestHandler, data: bytes) -> None:  # noqa: ARG001
    """Announce a terabyte and begin to send it."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def chunked(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Answer honestly, in chunks of unknown number."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(data), 100):
        piece = data[start : start + 100]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def _page(handler: BaseHTTPRequestHandler, code: int) -> None:
    body = b"<html><body>Please log in.</body></html>"
    handler.send_response(code)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
