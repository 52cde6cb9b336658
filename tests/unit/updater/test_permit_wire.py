"""What an etcd that is none, or a bad one, can do to a node: nothing but say so."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from tests.sim.permits import Nodes, refused, sleepless
from updater.permit.errors import PermitUnauthorizedError, PermitUnavailableError
from updater.permit.wire import ANSWER_MAX_BYTES, LINE_MAX_BYTES, Timeouts

Answer = Callable[[BaseHTTPRequestHandler], None]
QUICK = Timeouts(connect_s=5.0, answer_s=0.5)


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that tells a version like etcd and answers every POST with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            say(self, {"etcdserver": "3.4.23"})

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                answer(self)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def begin(handler: BaseHTTPRequestHandler, *, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def say(handler: BaseHTTPRequestHandler, value: object, *, status: int = 200) -> None:
    data = json.dumps(value).encode()
    begin(handler, status=status, Content_Length=str(len(data)))
    handler.wfile.write(data)


def endless(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    while True:
        handler.wfile.write(b" " * 65536)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    begin(handler)
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    begin(handler, Content_Length="1000")
    handler.wfile.write(b"{")


def redirecting(handler: BaseHTTPRequestHandler) -> None:
    begin(handler, status=307, Location="http://127.0.0.1:1/", Content_Length="0")


def failing(status: int, value: object) -> Answer:
    return lambda handler: say(handler, value, status=status)


def test_the_limits_hold_whatever_is_sent(tmp_path: Path) -> None:
    for answer, sentence in (
        (endless, f"more than {ANSWER_MAX_BYTES} bytes"),
        (dripping, r"no whole answer within 0\.5 s"),
        (truncated, "127"),
        (redirecting, "status 307"),
        (failing(503, {"message": "etcdserver: no leader"}), "503: etcdserver: no leader"),
        (failing(404, "page not found"), "404"),
        (failing(200, {"header": {"cluster_id": []}}), "does not answer like etcd"),
        (failing(200, []), "does not answer like etcd"),
        (failing(400, {"message": "bad JSON"}), "400: bad JSON"),
    ):
        with serving(answer) as url:
            fleet = Nodes(tmp_path, url)
            keeper = fleet.node("a", timeouts=QUICK)
            with pytest.raises(PermitUnavailableError, match=sentence):
                keeper.status()
            assert refused(keeper.acquire("update")).code == "permit-unavailable"
            fleet.close()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "etcdserver: invalid auth token"),
        (400, "etcdserver: user name is empty"),
        (403, "etcdserver: permission denied"),
    ],
)
def test_a_refusal_by_etcd_is_no_matter_of_trying_again(
    tmp_path: Path, status: int, message: str
) -> None:
    with serving(failing(status, {"message": message})) as url:
        fleet = Nodes(tmp_path, url)
        with pytest.raises(PermitUnauthorizedError, match=message):
            fleet.node("a").acquire("update")
        fleet.close()


HEADER = {"cluster_id": "7", "revision": "5"}


class WaitingRoom:
    """Just enough of an etcd to make a node wait, with a watch that answers `lines`."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("/watch"):
            begin(handler)
            handler.wfile.writelines(self._lines)
        elif handler.path.endswith("/lease/grant"):
            say(handler, {"header": HEADER, "ID": "9", "TTL": "60"})
        else:
            nothing: dict[str, object] = {"response_range": {}}
            own = {"response_range": {"kvs": [{"create_revision": "3"}], "count": "1"}}
            found = [own] if self._is_put(handler) else [nothing, own, nothing]
            say(handler, {"header": HEADER, "succeeded": True, "responses": found})

    def _is_put(self, handler: BaseHTTPRequestHandler) -> bool:
        return b"request_put" in getattr(handler, "body", b"")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"error":{"message":"no leader"}}\n', "the watch failed: no leader"),
        (b'{"result":{"canceled":true,"cancel_reason":"denied"}}\n', "cancelled: denied"),
        (b"<html>\n", "a watch does not answer like etcd"),
        (b'{"result":{"header":{"cluster_id":"7"},"created":true}}\n', "the stream ended"),
        (b"x" * (LINE_MAX_BYTES + 100_000), "a line of more than"),
    ],
    ids=["error", "cancelled", "page", "end", "long"],
)
def test_a_watch_that_goes_wrong_is_said_and_paused_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes, sentence: str
) -> None:
    pauses: list[float] = []
    with serving(WaitingRoom(line)) as url:
        fleet = Nodes(tmp_path, url)
        keeper = fleet.node("a", initial_max=0, pace=sleepless(pauses))
        refused(keeper.acquire("update"))
        pauses.clear()

        assert keeper.wait(60) is False
        fleet.close()

    assert sentence in caplog.text
    assert len(pauses) == 1
