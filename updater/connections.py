"""HTTP connections that can be cut: in a handshake, between two header bytes, in a body.

requests and urllib3 bound each silence, never the whole: a peer that sends a byte now and then
holds them for ever. What is asked, and what an answer means, is not here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Cutter:
    """Cuts the connection of a session that is used by one thread at a time.

    A duplicate of its socket is kept, so a connection that is done with ends by `cut`, `end` or
    the next one; closing the reply alone does not end it.

    Args:
        session: its adapters are replaced.
    """

    def __init__(self, session: requests.Session) -> None:
        self._guard = threading.Lock()
        self._connection: socket.socket | None = None
        self._ended = False
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WatchedAdapter(self._watch))

    def cut(self) -> None:
        """End the present connection, wherever it is; reading from it fails or seems to end."""
        with self._guard:
            self._cut()

    def end(self) -> None:
        """Cut the present connection, and every later one at once."""
        with self._guard:
            self._ended = True
            self._cut()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connection when the block takes longer than `seconds`.

        Raises:
            TimeoutError: it did, whatever else came of it: what was cut may look complete.
        """
        late = threading.Event()

        def cut_late() -> None:
            late.set()
            self.cut()

        timer = threading.Timer(seconds, cut_late)
        timer.daemon = True
        timer.start()
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
            raise
        finally:
            timer.cancel()
            timer.join()
            if late.is_set():
                raise TimeoutError(f"it took longer than {seconds:g} s") from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def _watch(self, connection: socket.socket) -> None:
        """Keep a duplicate of a new connection: it outlives the wrapping by TLS."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
            self._connection = connection.dup()
            if self._ended:
                self._cut()

    def _cut(self) -> None:
        if self._connection is None:
            return
        with contextlib.suppress(OSError):  # the peer was faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._connection = None


class _WatchedAdapter(HTTPAdapter):
    """Hands each new connection to `watch` before a byte is exchanged; retries nothing."""

    def __init__(self, watch: Callable[[socket.socket], None]) -> None:
        self._pools = _watched_pools(watch)
        super().__init__(max_retries=0)

    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # as requests has it
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools


def _watched_pools(watch: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's pools with connections that show their socket as soon as they have one."""

    class PlainConnection(HTTPConnection):
        @override
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            watch(connection)
            return connection

    class TlsConnection(HTTPSConnection):
        @override
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            watch(connection)
            return connection

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    return {"http": PlainPool, "https": TlsPool}
