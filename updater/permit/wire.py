"""HTTP to etcd's JSON gateway: members in turn, TLS, login, limits of time and size.

The only file of this room that loads requests; keeper.py imports it when a keeper is opened.
What the messages mean is etcd.py's business. Facts: section 7 of the reboot-lock reference.

A read is asked of each member until one answers. A write is given to one member only, the one
that answered last: when its answer is lost, nobody knows whether it was done, so the caller
must read again before it writes again.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import requests
import urllib3

from updater.permit.errors import (
    PermitSettingsError,
    PermitUnauthorizedError,
    PermitUnavailableError,
)
from updater.permit.settings import EtcdSettings

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0  # etcd itself gives up after 7 s without a quorum
ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024  # 1000 waiters or one document of 1 MiB, in base64
LINE_MAX_BYTES: Final = 4 * 1024 * 1024  # one event of a watch: one document
PASSWORD_MAX_BYTES: Final = 4096
_CHUNK_BYTES: Final = 64 * 1024
_QUOTE_CHARS: Final = 120  # of a strange answer, for the sentence

_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHENTICATED: Final = 401
_FORBIDDEN: Final = 403
_LOGIN_AGAIN: Final = ("user name is empty", "revision of auth store", "invalid auth token")
_NOT_BY_US: Final = ("authentication failed", "CommonName of client", "permission denied")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for a member, in seconds.

    Attributes:
        connect_s: for the connection.
        answer_s: for the whole answer; below 7 s a member without a quorum looks like a dead one.
    """

    connect_s: float = CONNECT_TIMEOUT_S
    answer_s: float = ANSWER_TIMEOUT_S


class _Version(msgspec.Struct, frozen=True):
    """Answer of GET /version."""

    etcdserver: str


class _Login(msgspec.Struct, frozen=True):
    """Answer of auth/authenticate."""

    token: str


class _Failure(msgspec.Struct, frozen=True):
    """What etcd says when it does not do it."""

    error: str = ""
    message: str = ""


@dataclass(slots=True)
class _Endpoint:
    """One member; `prefix` is known after the first contact, as in /v3."""

    url: str
    prefix: str | None = None


class _SilenceError(Exception):
    """A stream was open and nothing came in time; ends the stream, never leaves this file."""


class Wire:
    """A client of all members of one etcd. Used by one thread."""

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        monotonic: Callable[[], float],
        timeouts: Timeouts | None = None,
    ) -> None:
        """Open the files named in the settings; sends nothing yet.

        Raises:
            PermitSettingsError: a certificate, key or password file cannot be used.
        """
        self._settings = settings
        self._monotonic = monotonic
        self._timeouts = timeouts or Timeouts()
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in settings.endpoints]
        self._current = 0
        self._token = ""
        _check_files(settings)
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"  # limits count what is parsed
        self._session.trust_env = False  # no proxy, no netrc, no CA that the settings do not name
        self._session.verify = str(settings.ca_file) if settings.ca_file else True
        if settings.cert_file and settings.key_file:
            self._session.cert = (str(settings.cert_file), str(settings.key_file))

    def close(self) -> None:
        """Let go of all connections."""
        self._session.close()

    def read(self, path: str, body: object, kind: type[T]) -> T:
        """Ask the members in turn.

        Args:
            path: below the prefix, as in /kv/range.
            body: becomes JSON; bytes become base64.
            kind: what the answer must be.

        Raises:
            PermitUnavailableError: no member gave a usable answer.
            PermitUnauthorizedError: etcd refuses us.
        """
        problems = []
        for _ in self._endpoints:
            try:
                return self._ask(self._endpoints[self._current], path, body, kind)
            except PermitUnavailableError as error:
                problems.append(str(error))
                self._next()
        raise PermitUnavailableError("; ".join(problems))

    def write(self, path: str, body: object, kind: type[T]) -> T:
        """Give a write to the member that answered last.

        Raises:
            PermitUnavailableError: no usable answer; the write may have been done, may still be
                done later, or never.
            PermitUnauthorizedError: etcd refuses us; the write was not done.
        """
        try:
            return self._ask(self._endpoints[self._current], path, body, kind)
        except PermitUnavailableError:
            self._next()
            raise

    def lines(self, path: str, body: object, *, silence_s: float) -> Generator[bytes, None, None]:
        """Open a stream at the member that answered last and give its lines as they come.

        Ends when nothing came for `silence_s` seconds.

        Raises:
            PermitUnavailableError: the stream could not be opened, broke, ended, or has a line
                longer than `LINE_MAX_BYTES`.
            PermitUnauthorizedError: etcd refuses us.
        """
        endpoint = self._endpoints[self._current]
        try:
            with self._opened(endpoint, path, body, silence_s) as response:
                yield from _split(response)
        except _SilenceError:
            return
        except PermitUnavailableError as error:
            if isinstance(error.__cause__, requests.ReadTimeout):
                return  # not even the first line came: silence as well
            self._next()
            raise

    def _next(self) -> None:
        endpoint = self._endpoints[self._current]
        endpoint.prefix = None  # it may come back as another version
        self._current = (self._current + 1) % len(self._endpoints)

    def _ask(self, endpoint: _Endpoint, path: str, body: object, kind: type[T]) -> T:
        with self._opened(endpoint, path, body, self._timeouts.answer_s) as response:
            return self._decoded(endpoint, response, kind)

    @contextlib.contextmanager
    def _opened(
        self, endpoint: _Endpoint, path: str, body: object, answer_s: float
    ) -> Iterator[requests.Response]:
        """Send a request, log in if etcd wants it, and give the answer whose status is 200."""
        url = endpoint.url + self._prefix(endpoint) + path
        data = msgspec.json.encode(body)
        for may_log_in in (bool(self._settings.username), False):
            with self._sent("POST", url, data=data, answer_s=answer_s) as response:
                if response.status_code == _OK:
                    yield response
                    return
                said = _said(self._body(response))
                status = response.status_code
            if may_log_in and _wants_login(status, said):
                self._log_in(endpoint)
                continue
            raise _refusal(endpoint.url, status, said)

    @contextlib.contextmanager
    def _sent(
        self, method: str, url: str, *, answer_s: float, data: bytes | None = None
    ) -> Iterator[requests.Response]:
        """Send one request; what goes wrong on the way becomes ours here, and nowhere else."""
        try:
            with self._session.request(
                method,
                url,
                data=data,
                headers={"Authorization": self._token} if self._token else None,
                timeout=(self._timeouts.connect_s, answer_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise PermitUnavailableError(f"{url}: {_short(error)}") from error

    def _body(self, response: requests.Response) -> bytes:
        """Read a whole answer, bounded in size and time."""
        until = self._monotonic() + self._timeouts.answer_s
        data = bytearray()
        while chunk := response.raw.read1(_CHUNK_BYTES):
            data += chunk
            if len(data) > ANSWER_MAX_BYTES:
                raise PermitUnavailableError(f"{response.url}: more than {ANSWER_MAX_BYTES} bytes")
            if self._monotonic() > until:
                raise PermitUnavailableError(
                    f"{response.url}: no whole answer within {self._timeouts.answer_s} s"
                )
        return bytes(data)

    def _decoded(self, endpoint: _Endpoint, response: requests.Response, kind: type[T]) -> T:
        data = self._body(response)
        try:
            return msgspec.json.decode(data, type=kind, strict=False)  # numbers come as strings
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PermitUnavailableError(
                f"{endpoint.url} does not answer like etcd: {_said(data)!r}"
            ) from error

    def _prefix(self, endpoint: _Endpoint) -> str:
        if endpoint.prefix is None:
            url = f"{endpoint.url}/version"
            with self._sent("GET", url, answer_s=self._timeouts.answer_s) as response:
                version = self._decoded(endpoint, response, _Version).etcdserver
            endpoint.prefix = prefix_of(version)
            log.debug("etcd answers endpoint=%s version=%s", endpoint.url, version)
        return endpoint.prefix

    def _log_in(self, endpoint: _Endpoint) -> None:
        """Get a token; it is good at every member until it expires or etcd restarts."""
        self._token = ""
        login = {"name": self._settings.username, "password": _password(self._settings)}
        url = f"{endpoint.url}{self._prefix(endpoint)}/auth/authenticate"
        data = msgspec.json.encode(login)
        with self._sent("POST", url, data=data, answer_s=self._timeouts.answer_s) as response:
            if response.status_code != _OK:
                raise _refusal(endpoint.url, response.status_code, _said(self._body(response)))
            self._token = self._decoded(endpoint, response, _Login).token
        log.debug("logged in to etcd endpoint=%s user=%s", endpoint.url, self._settings.username)


def prefix_of(version: str) -> str:
    """Return the path under which an etcd of this version serves its API.

    Raises:
        PermitUnavailableError: `version` is no version.
    """
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError as error:
        raise PermitUnavailableError(f"etcd says its version is {version!r}") from error
    if (major, minor) >= (3, 4):
        return "/v3"
    return "/v3beta" if (major, minor) == (3, 3) else "/v3alpha"


def _split(response: requests.Response) -> Iterator[bytes]:
    """Cut a stream in lines; ends with an error, for a watch has no end."""
    rest = bytearray()
    while chunk := _next_chunk(response):
        rest += chunk
        *whole, tail = rest.split(b"\n")
        yield from (bytes(line) for line in whole if line)
        rest = bytearray(tail)
        if len(rest) > LINE_MAX_BYTES:
            raise PermitUnavailableError(f"{response.url}: a line of more than {LINE_MAX_BYTES}")
    raise PermitUnavailableError(f"{response.url}: the stream ended")


def _next_chunk(response: requests.Response) -> bytes:
    try:
        return response.raw.read1(_CHUNK_BYTES)
    except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
        raise _SilenceError from error


def _said(data: bytes) -> str:
    """Return what etcd says, or the beginning of what somebody else says."""
    try:
        failure = msgspec.json.decode(data, type=_Failure)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return data[:_QUOTE_CHARS].decode(errors="replace")
    return failure.message or failure.error or data[:_QUOTE_CHARS].decode(errors="replace")


def _wants_login(status: int, said: str) -> bool:
    if status == _UNAUTHENTICATED:
        return True
    return status == _BAD_REQUEST and any(part in said for part in _LOGIN_AGAIN)


def _refusal(url: str, status: int, said: str) -> PermitUnavailableError | PermitUnauthorizedError:
    known = (*_LOGIN_AGAIN, *_NOT_BY_US)
    ours = status in {_UNAUTHENTICATED, _FORBIDDEN}
    if ours or (status == _BAD_REQUEST and any(part in said for part in known)):
        return PermitUnauthorizedError(f"{url} refuses this node: {said}")
    return PermitUnavailableError(f"{url} answers with status {status}: {said}")


def _short(error: BaseException) -> str:
    """Return the innermost cause: requests wraps it in three layers of words."""
    while isinstance(inner := _inner(error), BaseException):
        error = inner
    text = str(error) or type(error).__name__
    return text.rsplit(": ", 1)[-1] if text.startswith(("HTTPConn", "HTTPSConn")) else text


def _inner(error: BaseException) -> object:
    return getattr(error, "reason", None) or (error.args[-1] if error.args else None)


def _check_files(settings: EtcdSettings) -> None:
    """Load certificates and key once, to name the bad one before anything is sent."""
    _password(settings)
    context = ssl.create_default_context()
    with _named("ca_file", settings.ca_file):
        if settings.ca_file:
            context.load_verify_locations(cafile=settings.ca_file)
    with _named("cert_file, key_file", settings.cert_file):
        if settings.cert_file:
            # An empty password makes an encrypted key an error; OpenSSL would ask the terminal.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")


@contextlib.contextmanager
def _named(name: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise PermitSettingsError(f"permit.{name}: {path} cannot be used: {error}") from error


def _password(settings: EtcdSettings) -> str:
    if settings.password_file is None:
        return ""
    path = settings.password_file
    with _named("password_file", path), path.open("rb") as file:
        first = file.read(PASSWORD_MAX_BYTES).split(b"\n", 1)[0]
    try:
        return first.rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        raise PermitSettingsError(f"permit.password_file: {path} is not UTF-8") from error
