"""Asking and telling an Omaha server. Its answer says when; it is a hint and nothing more.

Telling never blocks updating: events are queued in the state folder and sent when the server
can be reached, oldest first.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from updater import ENGINE_VERSION
from updater.errors import UnreachableError, UpdaterError
from updater.hints import hint_of, is_refusal
from updater.omaha.codec import RESPONSE_MAX_BYTES, decode_response, encode_request
from updater.omaha.codes import EventResult, number_of
from updater.omaha.elements import OmahaFormatError
from updater.omaha.messages import (
    ON_DEMAND,
    SCHEDULED,
    AppRequest,
    AppResponse,
    Event,
    OsInfo,
    Ping,
    Request,
    UpdateCheck,
)
from updater.rooms import ROOM_ERRORS

if TYPE_CHECKING:
    import requests

    from updater.hints import Hint
    from updater.state import Report, Store

log = logging.getLogger(__name__)

ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm", "i686": "x86"}  # uname to Omaha
READ_PIECE_BYTES: Final = 16 * 1024
SENTENCE_MAX_CHARS: Final = 300  # of a failure, as told to the server


class ServerUnreachableError(UnreachableError):
    """The Omaha server did not answer, or not as one."""

    code = "server-unreachable"
    hint = "Check server.omaha_url, the network and the server; it is tried again by itself."


class ServerRefusedError(UpdaterError):
    """The Omaha server answered that it will not serve this node."""

    code = "server-refused"
    hint = "The server must know this product and group: `bascule-server group list`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """How this node presents itself.

    Attributes:
        product, board, version: of the running image.
        group: the server's group.
        machine_id, host: identity.
        boot_id: the present boot.
        state, slot: the lifecycle state and the booted slot, as `status` prints them.
        delta_okay: whether it takes deltas.
    """

    product: str
    board: str
    version: str
    group: str
    machine_id: str
    host: str
    boot_id: str
    state: str
    slot: str
    delta_okay: bool = False


class Steering:
    """One Omaha server, asked over HTTP.

    Args:
        url: of the endpoint.
        session: makes an HTTP session of our own settings.
        timeout_secs: for a whole exchange; then the connection is cut, wherever it is.
    """

    def __init__(
        self,
        url: str,
        *,
        session: Callable[[], requests.Session],
        timeout_secs: float,
    ) -> None:
        self._url = url
        self._session = session
        self._timeout_secs = timeout_secs

    def ask(self, node: Self, *, by_person: bool) -> Hint:
        """Ask for an update.

        Raises:
            ServerUnreachableError: no usable answer.
            ServerRefusedError: the server does not serve this node.
        """
        app = _app(node, ping=Ping(), update_check=UpdateCheck())
        answer = self._exchange(_request((app,), by_person=by_person))
        if is_refusal(answer):
            raise ServerRefusedError(f"the server answered {answer.status!r} for {node.product}")
        try:
            return hint_of(answer)
        except OmahaFormatError as error:
            raise ServerUnreachableError(f"{self._url} gave no usable answer: {error}") from error

    def tell(self, node: Self, reports: Sequence[Report]) -> None:
        """Send events.

        Raises:
            ServerUnreachableError: no usable answer; send them again later.
        """
        events = tuple(_event(report) for report in reports)
        self._exchange(_request((_app(node, events=events),), by_person=False))

    def _exchange(self, request: Request) -> AppResponse:
        data = self._post(encode_request(request))
        try:
            response = decode_response(data)
        except UpdaterError as error:
            raise ServerUnreachableError(f"{self._url} gave no Omaha answer: {error}") from error
        if not response.apps:
            raise ServerUnreachableError(f"{self._url} answered without an app")
        return response.apps[0]

    def _post(self, body: bytes) -> bytes:
        """Exchange bytes within limits of size and time."""
        import requests
        from urllib3.exceptions import HTTPError

        from updater.connections import Cutter

        try:
            with (
                self._session() as session,
                Cutter(session) as cutter,
                cutter.within(self._timeout_secs),
            ):
                return self._read(self._open(session, body))
        except (requests.RequestException, HTTPError, OSError) as error:
            why = error if isinstance(error, TimeoutError) else type(error).__name__
            raise ServerUnreachableError(f"{self._url} cannot be reached: {why}") from error

    def _open(self, session: requests.Session, body: bytes) -> requests.Response:
        return session.post(
            self._url,
            data=body,
            headers={"Content-Type": "text/xml", "Accept-Encoding": "identity"},
            timeout=self._timeout_secs,
            allow_redirects=False,
            stream=True,
        )

    def _read(self, reply: requests.Response) -> bytes:
        data = b""
        with reply:
            if reply.status_code != 200:
                raise ServerUnreachableError(f"{self._url} answered {reply.status_code}")
            while piece := reply.raw.read1(READ_PIECE_BYTES, decode_content=False):
                data += piece
                if len(data) > RESPONSE_MAX_BYTES:
                    raise ServerUnreachableError(
                        f"{self._url} answered more than {RESPONSE_MAX_BYTES} bytes"
                    )
        return data


class Reporter:
    """Sends queued events in a thread of its own, so that nothing waits for the server.

    Args:
        store: where the queue is.
        steering: whom to tell.
        present: how the node presents itself now.
        pause_secs: between two tries while the server cannot be reached.
    """

    def __init__(
        self,
        *,
        store: Store,
        steering: Steering,
        present: Callable[[], Self],
        pause_secs: float,
    ) -> None:
        self._store = store
        self._steering = steering
        self._present = present
        self._pause_secs = pause_secs
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def close(self, timeout_secs: float) -> None:
        """Stop; a send under way gets `timeout_secs` to end. What is queued stays queued."""
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout_secs)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(self._pause_secs)
            self._wake.clear()
            try:
                if self._store.read_reports():
                    flush(self._store, self._steering, self._present())
            except (*ROOM_ERRORS, OSError) as error:  # the thread outlives them all
                code = getattr(error, "code", "system")
                log.warning("events wait for the server code=%s why=%s", code, error)


def flush(store: Store, steering: Steering, node: Self) -> int:
    """Send what is queued and take it off the queue; returns how many were sent.

    Raises:
        ServerUnreachableError: they stay queued.
        StateError: the queue cannot be read or written.
    """
    reports = store.read_reports()
    if not reports:
        return 0
    steering.tell(node, reports)
    store.drop_reports(reports)
    return len(reports)


def _request(apps: tuple[AppRequest, ...], *, by_person: bool) -> Request:
    program = f"bascule-{ENGINE_VERSION}"
    machine = platform.machine()
    return Request(
        apps=apps,
        os=OsInfo(
            platform="Linux",
            version="bascule",
            service_pack=f"{apps[0].version}_{machine}",
            arch=ARCHITECTURES.get(machine, machine),
        ),
        version=program,
        updater_version=program,
        install_source=ON_DEMAND if by_person else SCHEDULED,
    )


def _app(
    node: Self,
    *,
    ping: Ping | None = None,
    update_check: UpdateCheck | None = None,
    events: tuple[Event, ...] = (),
) -> AppRequest:
    return AppRequest(
        app_id=node.product,
        version=node.version,
        track=node.group,
        boot_id=f"{{{node.boot_id}}}",
        machine_id=node.machine_id,
        machine_alias=node.host,
        board=node.board,
        language="en-US",
        state=node.state,
        slot=node.slot,
        delta_okay=node.delta_okay,
        ping=ping,
        update_check=update_check,
        events=events,
    )


def _event(report: Report) -> Event:
    failed = report.event_result != EventResult.SUCCESS and report.code
    return Event(
        type=report.event_type,
        result=report.event_result,
        error_code=number_of(report.code) if failed else None,
        previous_version=report.previous_version or None,
        next_version=report.next_version or None,
        bascule_code=report.code,
        bascule_sentence=_plain(report.sentence),
    )


def _plain(text: str) -> str:
    """Return what XML can carry of a sentence, cut to a bearable length: no event may block."""
    return "".join(char if char.isprintable() else "?" for char in text[:SENTENCE_MAX_CHARS])
