"""Payload files behind a real HTTP server on the loopback that can be made to misbehave."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from typing_extensions import override

PIECE_BYTES = 64 * 1024


@dataclass
class Manners:
    """How the server behaves.

    Attributes:
        ranges: whether it knows range requests.
        cut_after: bytes after which a transfer's connection is cut; None for never.
        status: answered instead of 200 or 206; None for those.
        page: answered instead of the file, as a captive portal does.
        flip_at: this byte of the file is sent flipped.
        shift_ranges: answer a range that begins so many bytes later than asked.
        pause_s: between two pieces.
    """

    ranges: bool = True
    cut_after: int | None = None
    status: int | None = None
    page: bytes | None = None
    flip_at: int | None = None
    shift_ranges: int = 0
    pause_s: float = 0.0


@dataclass
class PayloadServer:
    """Serves `files` by name below `/payloads/` until it is left.

    Attributes:
        sent: body bytes that were handed to the network so far.
        requests: `Range` headers of all requests, in order, empty text for none.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    manners: Manners = field(default_factory=Manners)
    sent: int = 0
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._ending = threading.Event()
        self._counting = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/payloads"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, size: int) -> None:
        with self._counting:
            self.sent += size

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        manners = self.manners
        data = self.files.get(handler.path.rpartition("/")[2])
        asked = handler.headers.get("Range", "")
        self.requests.append(asked)
        if manners.page is not None:
            self._send(handler, 200, manners.page, {})
            return
        if data is None or manners.status is not None:
            self._send(handler, manners.status or 404, b"", {})
            return
        if manners.flip_at is not None:
            flipped = bytearray(data)
            flipped[manners.flip_at] ^= 0x01
            data = bytes(flipped)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if manners.ranges and found:
            start = int(found[1]) + manners.shift_ranges
            end = min(int(found[2]) + 1, len(data)) if found[2] else len(data)
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            self._send(handler, 206, memoryview(data)[start:end], headers)
            return
        self._send(handler, 200, memoryview(data), {})

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes | memoryview,
        headers: dict[str, str],
    ) -> None:
        handler.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            handler.send_header(name, value)
        handler.end_headers()
        for offset in range(0, len(body), PIECE_BYTES):
            if self._ending.is_set() or self._ends(offset):
                handler.close_connection = True
                return
            piece = body[offset : offset + PIECE_BYTES]
            handler.wfile.write(piece)
            self.count(len(piece))
            if self.manners.pause_s:
                self._ending.wait(self.manners.pause_s)

    def _ends(self, sent: int) -> bool:
        return self.manners.cut_after is not None and sent >= self.manners.cut_after

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 0.5  # an idle connection of a client that went away ends with the test
            disable_nagle_algorithm = True  # head and body go out at once

            def do_GET(self) -> None:  # http.server has it so
                served.answer(self)

            @override
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):  # a killed client
                    super().handle()

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        return Handler
