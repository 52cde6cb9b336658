"""Payload bytes in order, from the first mirror that gives them, however it behaves.

A `Download` is the pipeline's byte source: exact reads, never a byte beyond the signed size.
A transfer that breaks goes on where it stopped, by a range request; where a server ignores
ranges the bytes before are read again and thrown away, and counted. What the bytes mean, and
whether they are the right ones, is decided by hashes elsewhere: a mirror can only cost time.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urljoin, urlsplit

from updater import token_bucket
from updater.errors import UnreachableError, UpdaterError

if TYPE_CHECKING:
    import requests

    from updater.budget import Allowance

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECS: Final = 10.0
REDIRECTS_MAX: Final = 3  # mirrors redirect to a near one; more is a loop
SKIP_PIECE_BYTES: Final = 256 * 1024
FIRST_BYTES_KEPT: Final = 64  # shown when a proxy answers with a page of its own
MIN_RATE_BYTES: Final = 1024  # per second over RATE_WINDOW_SECS: slower is a stalled mirror
RATE_WINDOW_SECS: Final = 300.0
STOP_LOOK_SECS: Final = 0.25  # how soon a pause between two tries sees that it should end


class DownloadError(UnreachableError):
    """No mirror gave the payload's bytes."""

    code = "download-failed"
    hint = "Check the network and the mirrors; it resumes where it stopped, by itself."


class PayloadMissingError(DownloadError):
    """Every mirror answered, and none of them has the payload: the network is not to blame."""


class DownloadStoppedError(UpdaterError):
    """The engine was told to stop; what was written so far is kept."""

    code = "stopped"
    hint = "It resumes where it stopped at the next start."


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download tries.

    Attributes:
        idle_timeout_secs: silence after which a connection counts as broken, and the time in
            which an answer must begin.
        retries: broken or refused transfers per mirror before it is given up.
        retry_delay_secs: pause before the next try, doubled each time up to `DELAY_MAX_SECS`.
    """

    idle_timeout_secs: float
    retries: int
    retry_delay_secs: float


DELAY_MAX_SECS: Final = 60.0


class _BrokenTransferError(Exception):
    """One transfer ended early or was refused; the caller decides what is next."""


class _NotThereError(_BrokenTransferError):
    """A mirror answered that it has no such file, or has another one under this name."""


class Download:
    """The payload's bytes from `position` on, in order.

    Args:
        urls: where mirrors keep the payload, best first.
        size: its signed size in bytes; None when nothing signed says so yet: see `learn_size`.
        session: an HTTP session of our own settings, for this download alone.
        patience: when to give up.
        monotonic: a clock in seconds.
        stop: set to make every wait and read end with `DownloadStoppedError`.
        rate: bytes per second at most, 0 for no limit.
        allowance: gives the limit of bytes that is nearest, None for none. Asked with each
            transfer that begins, and told what was received so far: a link may have become a
            metered one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        size: int | None,
        session: requests.Session,
        patience: Patience,
        monotonic: Callable[[], float],
        stop: threading.Event,
        rate: int = 0,
        allowance: Callable[[int], Allowance | None] = lambda _: None,
    ) -> None:
        from updater.connections import Cutter

        self._urls = list(urls)
        self._size = size
        self._session = session
        self._patience = patience
        self._monotonic = monotonic
        self._stop = stop
        self._nearest_limit = allowance
        self._allowance: Allowance | None = None
        self._counted = 0  # what was received when the allowance was asked for
        self._bucket = token_bucket.full(rate, monotonic()) if rate else None
        self._failures = dict.fromkeys(self._urls, 0)
        self._lacking: set[str] = set()
        self._position = 0
        self._reply: requests.Response | None = None
        self._reply_end: int | None = None  # of a range, the byte after its last
        self._spans: Sequence[tuple[int, int]] = ()
        self._window = (0.0, 0)
        self._cutter = Cutter(session)
        self._interrupted = False
        self.received = 0  # bytes that came over the network, thrown away ones included
        self._asked_range = False
        self._ignores_ranges = False  # another request would begin with the first byte again
        self.serves_ranges = False  # whether the last answer was the range that was asked for

    @property
    def mirror(self) -> str:
        """The URL that bytes come from at the moment."""
        return self._urls[0]

    @property
    def position(self) -> int:
        """The offset of the next byte."""
        return self._position

    def learn_size(self) -> int:
        """Return the size of the payload, as a mirror says it where nothing signed does.

        Raises:
            DownloadError: every mirror failed too often, or none says how long it is.
            PayloadMissingError: no mirror has the payload.
            DownloadStoppedError: the engine was told to stop.
        """
        while self._size is None:
            self._check_stop()
            try:
                self._reply = self._reply or self._open()
                if self._size is None:
                    raise _BrokenTransferError("the server does not say how long it is")
            except _BrokenTransferError as error:
                self._note_failure(error)
        return self._size

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Ask for these ranges alone from now on, each by one request; for all when there are none.

        A position outside them is read to the end of the payload. A connection is kept from one
        range to the next, and a transfer of the whole goes on.

        Args:
            spans: (first byte, the one after the last), ascending, apart.
        """
        self._spans = spans

    def seek(self, position: int) -> None:
        """Go on at `position`; the transfer under way is used when it is a little ahead of it."""
        if self._reply is not None:
            self._leave(position)
        self._position = position

    def _leave(self, position: int) -> None:
        """Read the transfer under way up to `position`, or to its end; or end it."""
        target = position if self._reply_end is None else min(position, self._reply_end)
        ahead = target - self._position
        if ahead < 0 or (ahead > SKIP_PIECE_BYTES and not self._ignores_ranges):
            self.close()
            return
        while ahead:
            size = min(ahead, SKIP_PIECE_BYTES)
            self.read_exactly(size)
            ahead -= size

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            DownloadError: every mirror failed too often, or the payload ends before.
            PayloadMissingError: no mirror has the payload.
            BudgetError: it would come to more bytes than are allowed.
            DownloadStoppedError: the engine was told to stop.
        """
        known = self.learn_size()
        if self._position + size > known:
            raise DownloadError(
                f"bytes {self._position} to {self._position + size} were asked of a payload "
                f"of {known} bytes"
            )
        pieces: list[bytes] = []
        missing = size
        while missing:
            self._check_stop()
            try:
                piece = self._read_some(missing)
            except _BrokenTransferError as error:
                self._note_failure(error)
                continue
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def interrupt(self) -> None:
        """End a read under way in another thread; every later one raises."""
        self._interrupted = True
        self._cutter.end()

    def close(self) -> None:
        """End the transfer under way."""
        if self._reply is not None:
            self._reply.close()
            self._reply = None
        self._cutter.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
        self._session.close()

    def _read_some(self, size: int) -> bytes:
        reply = self._reply or self._open()
        self._require(size)
        if self._reply_end is not None:
            size = min(size, self._reply_end - self._position)
        piece = self._raw_read(reply, size)
        if not piece:
            raise _BrokenTransferError("the transfer ended early")
        self._position += len(piece)
        self._failures[self._urls[0]] = 0
        self._lacking.discard(self._urls[0])
        if self._position == self._reply_end:
            self._reply = None  # read to its end, it gave its connection back
        return piece

    def _raw_read(self, reply: requests.Response, size: int) -> bytes:
        from urllib3.exceptions import HTTPError

        size = self._allowed(size)
        try:
            # What is there: a read that waits for all of it lets a trickle hold us for ever.
            piece: bytes = reply.raw.read1(size, decode_content=False)
        except (HTTPError, OSError) as error:
            raise _BrokenTransferError(f"the transfer broke: {type(error).__name__}") from error
        self.received += len(piece)
        self._check_rate(len(piece))
        if self._bucket is not None:
            self._bucket, wait = token_bucket.take(self._bucket, len(piece), self._monotonic())
            self._pause(wait)
        return piece

    def _require(self, size: int) -> None:
        """Refuse bytes of which only some may come: what is not whole counts, and is of no use.

        Raises:
            BudgetError: fewer are allowed.
        """
        if self._allowance is not None and self._left_of(self._allowance) < size:
            raise self._allowance.refusal_after(self.received)

    def _left_of(self, allowance: Allowance) -> int:
        return allowance.left - (self.received - self._counted)

    def _allowed(self, size: int) -> int:
        """Return how many of `size` bytes one read may ask for.

        Raises:
            BudgetError: none; what was thrown away counts, too.
        """
        if self._bucket is not None:
            size = min(size, self._bucket.burst)
        if self._allowance is None:
            return size
        left = self._left_of(self._allowance)
        if left <= 0:
            raise self._allowance.refusal_after(self.received)
        return min(size, left)

    def _open(self) -> requests.Response:
        """Ask the first mirror for the rest from `position` on; returns a reply that is there."""
        self._allowance, self._counted = self._nearest_limit(self.received), self.received
        self._allowed(1)  # before anybody is asked for bytes that may not come
        reply = self._request(self._urls[0])
        self._window = (self._monotonic(), 0)
        try:
            skip = self._bytes_before(reply)
            self._reply = reply
            while skip:
                self._check_stop()
                piece = self._raw_read(reply, min(skip, SKIP_PIECE_BYTES))
                if not piece:
                    raise _BrokenTransferError("the transfer ended early")
                skip -= len(piece)
        except BaseException:
            reply.close()
            self._reply = None
            raise
        return reply

    def _request(self, url: str) -> requests.Response:
        import requests

        scheme = urlsplit(url).scheme
        headers = {"Accept-Encoding": "identity"}
        end = self._expected_end()
        if self._position or end:
            headers["Range"] = f"bytes={self._position}-{end - 1 if end else ''}"
        self._asked_range = "Range" in headers
        for _ in range(REDIRECTS_MAX + 1):
            try:
                with self._cutter.within(self._patience.idle_timeout_secs):
                    reply = self._session.get(
                        url,
                        stream=True,
                        headers=headers,
                        allow_redirects=False,
                        timeout=(CONNECT_TIMEOUT_SECS, self._patience.idle_timeout_secs),
                    )
            except (requests.RequestException, OSError, ValueError) as error:
                raise _BrokenTransferError(f"no answer: {type(error).__name__}") from error
            if reply.status_code not in {301, 302, 303, 307, 308}:
                return reply
            reply.close()
            url = urljoin(url, reply.headers.get("Location", ""))
            if urlsplit(url).scheme not in {scheme, "https"}:
                raise _BrokenTransferError(f"redirected from {scheme} to {urlsplit(url).scheme}")
        raise _BrokenTransferError(f"redirected more than {REDIRECTS_MAX} times")

    def _expected_end(self) -> int | None:
        """Return where the range that holds `position` ends, None to read to the end."""
        return next((end for start, end in self._spans if start <= self._position < end), None)

    def _bytes_before(self, reply: requests.Response) -> int:
        """Return how many bytes come before `position`; refuse what is not our payload."""
        self._reply_end = None
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise _BrokenTransferError("the server encodes what must come as it is")
        if reply.status_code == 206:
            found = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+|\*)", reply.headers.get("Content-Range", "")
            )
            if not found or int(found[1]) != self._position or int(found[2]) < self._position:
                raise _BrokenTransferError("the server answered with another range than asked")
            self._check_total(found[3])
            self._reply_end = int(found[2]) + 1
            self.serves_ranges = True
            self._ignores_ranges = False
            return 0
        if reply.status_code != 200:
            kind = _NotThereError if reply.status_code in {404, 410} else _BrokenTransferError
            raise kind(f"the server answered {reply.status_code}")
        self.serves_ranges = False
        self._ignores_ranges = self._asked_range
        self._check_total(reply.headers.get("Content-Length", "*"))
        return self._position

    def _check_total(self, total: str) -> None:
        """A wrong total is another file, such as a proxy's page; negative or odd: unknown."""
        if not total.isdecimal():
            return
        if self._size is None:
            self._size = int(total)
        if int(total) != self._size:
            raise _NotThereError(f"it has {total} bytes there, not {self._size}")

    def _check_rate(self, received: int) -> None:
        began, count = self._window
        count += received
        elapsed = self._monotonic() - began
        if elapsed >= RATE_WINDOW_SECS:
            if count < MIN_RATE_BYTES * elapsed:
                raise _BrokenTransferError(f"slower than {MIN_RATE_BYTES} bytes/s")
            began, count = self._monotonic(), 0
        self._window = (began, count)

    def _note_failure(self, why: _BrokenTransferError) -> None:
        """Count a failure of the first mirror, pause, and go to the next when it failed too often.

        Raises:
            DownloadError: no mirror is left; PayloadMissingError: each of them lacks the file.
            DownloadStoppedError: it broke because we were told to stop.
        """
        self.close()
        self._check_stop()
        url = self._urls[0]
        self._failures[url] += 1
        count = self._failures[url]
        self._lacking.discard(url)
        if isinstance(why, _NotThereError):
            self._lacking.add(url)
        log.warning(
            "transfer failed url=%s position=%d try=%d why=%s", url, self._position, count, why
        )
        if count > self._patience.retries:
            if all(failed > self._patience.retries for failed in self._failures.values()):
                no_one_has_it = self._lacking == self._failures.keys()
                kind = PayloadMissingError if no_one_has_it else DownloadError
                raise kind(
                    f"{url}: {why}, after {count} tries on each of {len(self._urls)} mirrors"
                )
            self._urls.append(self._urls.pop(0))
            return
        if len(self._urls) > 1:
            self._urls.append(self._urls.pop(0))
        self._pause(min(self._patience.retry_delay_secs * 2 ** (count - 1), DELAY_MAX_SECS))

    def _pause(self, left: float) -> None:
        while left > 0:
            self._check_stop()
            self._stop.wait(min(left, STOP_LOOK_SECS))
            left -= STOP_LOOK_SECS

    def _check_stop(self) -> None:
        if self._interrupted or self._stop.is_set():
            raise DownloadStoppedError("the engine was told to stop")
