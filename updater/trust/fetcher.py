"""How metadata files arrive: bounded in size, in silence and in total time; never trusted here.

The stock fetchers of python-tuf follow redirects, decode gzip, have no total time limit and let
foreign errors out in the middle of a body (trust.md 4). These do none of that. Payloads do not
come this way: they are streamed by the install pipeline.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)
from tuf.ngclient.fetcher import FetcherInterface
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from updater.trust.limits import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    REFRESH_DEADLINE_S,
)

_TIMEOUTS: Final = (requests.Timeout, Urllib3TimeoutError, TimeoutError)  # headers, body, TLS
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hold us


def open_session(
    *,
    proxies: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
    user_agent: str = "bascule",
) -> requests.Session:
    """Return a session that listens to its arguments only, never to the environment.

    Args:
        proxies: URL of the proxy by scheme (`http`, `https`).
        ca_file: PEM certificates that may vouch for servers; None takes those of requests.
        user_agent: how the node calls itself.
    """
    session = requests.Session()
    session.trust_env = False  # no proxies, .netrc or REQUESTS_CA_BUNDLE of the caller
    session.proxies = dict(proxies or {})
    session.verify = True if ca_file is None else str(ca_file)
    session.headers["User-Agent"] = user_agent
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


class BoundedFetcher(FetcherInterface):
    """What both fetchers share: files are gathered in memory, up to the limit that is asked for."""

    @override
    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Yield the content of `url`; python-tuf's own would spool it into a temporary file.

        Raises:
            DownloadLengthMismatchError: it is longer than `max_length` bytes.
            DownloadError: it could not be had.
        """
        yield io.BytesIO(self._gather(url, max_length))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all that is open."""

    def _gather(self, url: str, max_length: int) -> bytes:
        gathered = bytearray()
        chunks = self.fetch(url)
        try:
            for chunk in chunks:
                gathered += chunk
                if len(gathered) > max_length:
                    raise DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
        finally:
            if isinstance(chunks, Generator):
                chunks.close()
        return bytes(gathered)


class HttpFetcher(BoundedFetcher):
    """Files of an http or https server; serves one refresh and is closed with it.

    Args:
        session: from `open_session`; owned and closed by the fetcher.
        deadline_s: for all files together. From then on every connection is cut, wherever it is:
            in a handshake, between two header bytes or in a body.
        idle_s: without a byte.
    """

    def __init__(
        self,
        session: requests.Session,
        *,
        deadline_s: float = REFRESH_DEADLINE_S,
        idle_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._session = session
        self._timeouts = (CONNECT_TIMEOUT_S, idle_s)
        self._deadline = time.monotonic() + deadline_s
        self._sockets: list[socket.socket] = []
        self._guard = threading.Lock()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WatchedAdapter(self._watch))
        self._timer = threading.Timer(deadline_s, self._cut)
        self._timer.daemon = True
        self._timer.start()

    @override
    def close(self) -> None:
        """Close session and connections."""
        self._timer.cancel()
        self._timer.join()
        self._session.close()
        self._cut()

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            reply = self._session.get(
                url,
                stream=True,
                timeout=self._timeouts,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            )
        except (requests.RequestException, OSError) as error:
            raise self._told(url, error) from error
        try:
            _check_reply(url, reply)
        except DownloadError:
            _drain(reply)
            raise
        return self._body(url, reply)

    def _body(self, url: str, reply: requests.Response) -> Generator[bytes, None, None]:
        try:
            while piece := reply.raw.read1(CHUNK_BYTES, decode_content=False):
                if self._is_late():
                    raise SlowRetrievalError(f"{url} did not arrive in the time allowed")
                yield piece
            if self._is_late():  # a connection that we cut may look like a body that ended
                raise SlowRetrievalError(f"{url} did not arrive in the time allowed")
        except DownloadError:
            raise
        except Exception as error:  # urllib3, http.client and ssl each have families of their own
            raise self._told(url, error) from error
        finally:
            reply.close()

    def _told(self, url: str, error: Exception) -> DownloadError:
        """Return what `error` means in python-tuf's family."""
        if self._is_late() or isinstance(error, _TIMEOUTS):
            return SlowRetrievalError(f"{url} did not arrive in the time allowed")
        return DownloadError(f"{url}: {error}")

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _watch(self, connection: socket.socket) -> None:
        """Remember a way to cut `connection`: a duplicate outlives its wrapping by TLS."""
        with self._guard:
            self._sockets.append(connection.dup())

    def _cut(self) -> None:
        with self._guard:
            for duplicate in self._sockets:
                with contextlib.suppress(OSError):
                    duplicate.shutdown(socket.SHUT_RDWR)
                duplicate.close()
            self._sockets.clear()


class FolderFetcher(BoundedFetcher):
    """Files of a local folder, for `file://` URLs: a mirror on a disk, an unpacked bundle.

    Links are not followed and only regular files are read, as the folder may be a stranger's.

    Args:
        folder: nothing outside of it is read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(unquote(urlsplit(url).path))
        try:
            parts = path.relative_to(self._folder).parts
        except ValueError as error:
            raise DownloadError(f"{url} is outside of {self._folder}") from error
        if not parts or ".." in parts:
            raise DownloadError(f"{url} names no file below {self._folder}")
        try:
            return self._read(_open_beneath(self._folder, parts))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DownloadHTTPError(f"{url} does not exist", HTTPStatus.NOT_FOUND) from error
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror}") from error

    def _read(self, file: IO[bytes]) -> Generator[bytes, None, None]:
        with file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


def _open_beneath(folder: Path, parts: tuple[str, ...]) -> IO[bytes]:
    """Open a regular file below `folder` without following any link on the way."""
    step = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for name in parts[:-1]:
        try:
            inner = os.open(name, _FOLDER_FLAGS, dir_fd=step)
        finally:
            os.close(step)
        step = inner
    try:
        descriptor = os.open(parts[-1], _FILE_FLAGS, dir_fd=step)
    finally:
        os.close(step)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(0, "not a regular file")
    return file


def _check_reply(url: str, reply: requests.Response) -> None:
    """Refuse all but a plain 200: redirects, errors, compressed bodies."""
    status = reply.status_code
    if reply.is_redirect:
        raise DownloadHTTPError(
            f"{url}: HTTP {status} points elsewhere, redirects are not followed", status
        )
    if status != HTTPStatus.OK:
        raise DownloadHTTPError(f"{url}: HTTP {status}, expected 200", status)
    coding = reply.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise DownloadError(f"{url}: content coding {coding[:40]!a}, asked for identity")


def _drain(reply: requests.Response) -> None:
    """Read the page that comes with an error, if it is small, so that the connection can serve on.

    Each refresh ends its walk of roots with a 404.
    """
    with contextlib.suppress(Exception):  # a connection that fails here is not used again
        left = CHUNK_BYTES
        while left > 0 and (piece := reply.raw.read1(left, decode_content=False)):
            left -= len(piece)
    reply.close()


class _WatchedAdapter(HTTPAdapter):
    """Hands each new connection to `watch` before a byte is exchanged; retries nothing."""

    def __init__(self, watch: Callable[[socket.socket], None]) -> None:
        self._pools = _watched_pools(watch)
        super().__init__(max_retries=0)

    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # as requests has it
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    @override
    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # as requests has it
        manager = super().proxy_manager_for(proxy, **kwargs)
        if proxy.lower().startswith("http"):  # SOCKS brings pools of its own
            manager.pool_classes_by_scheme = self._pools
        return manager


def _watched_pools(watch: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's pools with connections that show their socket as soon as they have one.

    `_new_conn` is the seam that urllib3's own SOCKS support uses. There is no other place where
    the socket of a connection can be had before the headers are read.
    """

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
