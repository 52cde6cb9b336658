"""Running the web server: a socket, uvicorn, a clean end on SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
from typing import TYPE_CHECKING, Final

from server.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    import uvicorn
    from starlette.applications import Starlette

    from server.desk import Desk

log = logging.getLogger(__name__)

BACKLOG: Final = 1024  # a fleet that wakes at once
KEEP_ALIVE_S: Final = 30
GRACE_S: Final = 5  # downloads resume elsewhere or later


def listen(address: str) -> socket.socket:
    """Return a socket that listens on `HOST:PORT`; port 0 is any free one.

    Raises:
        ListenError: the address has a wrong shape or cannot be had.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"{address!a} is not of the form HOST:PORT")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(f"{address} cannot be listened on: {error.strerror}") from error


def url_of(sock: socket.socket) -> str:
    """Return the http URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_config(app: Starlette) -> uvicorn.Config:
    """Return how uvicorn runs the application: quiet, and gone soon after it is told to end."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def serve(desk: Desk, sock: socket.socket, *, public_url: str, ready: Callable[[], None]) -> None:
    """Serve a desk until SIGTERM or SIGINT.

    Args:
        desk: which desk.
        sock: where; it is closed at the end.
        public_url: how nodes reach it.
        ready: called once the server is about to take requests.
    """
    import uvicorn

    from server.app import build_app

    config = web_config(build_app(desk, public_url=public_url))
    # uvicorn raises the signal again once it has ended: it has been obeyed by then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _obeyed)
    ready()
    uvicorn.Server(config).run(sockets=[sock])


def _obeyed(number: int, _: FrameType | None) -> None:
    log.info("server ended signal=%s", signal.Signals(number).name)
