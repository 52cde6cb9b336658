"""A real HTTP server on the loopback that answers as a script says, request by request."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self, TypeAlias

from typing_extensions import override

from tests.sim.certificates import TlsFiles

PAUSE_S = 0.01  # between two bytes of a trickle


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """Answers request number n with `script[n]`, and all later ones with the last.

    Attributes:
        script: what is done; may be changed between two requests.
        tls: certificate and key to speak https with.
        asked: all requests so far.
        ending: set when the server goes down; whoever waits must wait for this too.
    """

    script: Sequence[Answer] = ()
    tls: TlsFiles | None = None
    asked: list[Asked] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        if self.tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls.server_cert, self.tls.server_key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._counting = threading.Lock()

    @property
    def base(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_answer(self, asked: Asked) -> Answer:
        with self._counting:
            number = len(self.asked)
            self.asked.append(asked)
        return self.script[min(number, len(self.script) - 1)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 0.5  # an idle connection of a client that went away ends with the test
            disable_nagle_algorithm = True  # head and body go out at once

            def do_GET(self) -> None:  # http.server has it so
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                asked = Asked(
                    method=self.command, path=self.path, headers=dict(self.headers), body=body
                )
                with contextlib.suppress(OSError):  # the client went away, also in TLS
                    served.next_answer(asked)(Talk(self, asked, served.ending))

            def do_POST(self) -> None:
                self.do_GET()

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        return Handler


class _QuietServer(ThreadingHTTPServer):
    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: that clients go away is what many tests are about."""


class Talk:
    """One exchange, as an answer sees it."""

    def __init__(
        self, handler: BaseHTTPRequestHandler, asked: Asked, ending: threading.Event
    ) -> None:
        self._handler = handler
        self.asked = asked
        self.ending = ending

    def head(self, status: int, **headers: object) -> None:
        """Send status line and headers; `_` in a name stands for `-`."""
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), str(value))
        self._handler.end_headers()

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def drip(self, data: bytes) -> None:
        """Send byte after byte, slowly, until the server goes down."""
        self._handler.close_connection = True
        for byte in data:
            if self.ending.wait(PAUSE_S):
                return
            self.send(bytes([byte]))

    def hold(self) -> None:
        """Say nothing more until the server goes down."""
        self._handler.close_connection = True
        self.ending.wait()

    def hang_up(self) -> None:
        self._handler.close_connection = True


Answer: TypeAlias = Callable[[Talk], None]


def reply(status: int, body: bytes = b"", **headers: object) -> Answer:
    """Answer as it should be."""

    def answer(talk: Talk) -> None:
        talk.head(status, **{"Content_Length": len(body)} | headers)
        talk.send(body)

    return answer


def cut(body: bytes, after: int) -> Answer:
    """Announce all of `body`, send `after` bytes of it and hang up."""

    def answer(talk: Talk) -> None:
        talk.head(200, Content_Length=len(body))
        talk.send(body[:after])
        talk.hang_up()

    return answer


def stalled(body: bytes, after: int) -> Answer:
    """Announce all of `body`, send `after` bytes of it and fall silent."""

    def answer(talk: Talk) -> None:
        talk.head(200, Content_Length=len(body))
        talk.send(body[:after])
        talk.hold()

    return answer


def silent(talk: Talk) -> None:
    """Take the request and never answer."""
    talk.hold()


def dripping_body(body: bytes) -> Answer:
    """Send `body` so slowly that nobody can wait for it, while never being silent."""

    def answer(talk: Talk) -> None:
        talk.head(200, Content_Length=len(body))
        talk.drip(body)

    return answer


def dripping_headers(talk: Talk) -> None:
    """Never get to the end of the headers, while never being silent."""
    talk.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 1\r\n" * 10_000)


def endless(talk: Talk) -> None:
    """Send without an end and without announcing one."""
    talk.head(200, Connection="close")
    while not talk.ending.is_set():
        talk.send(b" " * 65536)
