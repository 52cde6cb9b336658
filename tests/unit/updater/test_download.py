from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from typing_extensions import override

from tests.sim.certificates import TlsFiles, make_tls_files
from tests.sim.payload_server import Manners, PayloadServer
from tests.sim.scripted_server import (
    Answer,
    ScriptedServer,
    Talk,
    cut,
    dripping_body,
    dripping_headers,
    reply,
    silent,
    stalled,
)
from updater.budget import Allowance, UpdateBudgetError
from updater.download import (
    MIN_RATE_BYTES,
    RATE_WINDOW_SECS,
    REDIRECTS_MAX,
    Download,
    DownloadError,
    DownloadStoppedError,
    Patience,
    PayloadMissingError,
)
from updater.errors import EXIT_CANNOT_TELL
from updater.trust.fetcher import open_session

DATA: Final = random.Random(1).randbytes(1_000_000)
NAME: Final = "payload.crau"
LOOK_SECS: Final = 0.002
LOOKS: Final = 30_000  # a minute, for what takes a moment
RATE_WINDOW_BYTES: Final = int(MIN_RATE_BYTES * RATE_WINDOW_SECS)  # less in a window is too slow
PIECE: Final = 100_000  # as the pipeline reads: a blob at a time
FAST: Final = Patience(idle_timeout_secs=10, retries=2, retry_delay_secs=0.001)
ONCE: Final = Patience(idle_timeout_secs=10, retries=0, retry_delay_secs=0.001)
HASTY: Final = Patience(idle_timeout_secs=0.3, retries=9, retry_delay_secs=0.001)
DAY: Final = Patience(idle_timeout_secs=86_400, retries=9, retry_delay_secs=86_400)


class Clock:
    """Monotonic seconds that pass by `step` at each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 1_000_000.0  # a machine that has been up for long
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def serve(stack: ExitStack, manners: Manners | None = None, data: bytes = DATA) -> PayloadServer:
    server = PayloadServer(files={NAME: data}, manners=manners or Manners())
    return stack.enter_context(server)


def scripted(stack: ExitStack, *script: Answer) -> ScriptedServer:
    return stack.enter_context(ScriptedServer(script=script))


def download(
    stack: ExitStack,
    *bases: str,
    patience: Patience = FAST,
    clock: Callable[[], float] | None = None,
    stop: threading.Event | None = None,
    size: int = len(DATA),
    rate: int = 0,
    allowance: Allowance | None = None,
) -> Download:
    return stack.enter_context(
        Download(
            [f"{base}/{NAME}" for base in bases],
            size=size,
            session=open_session(),
            patience=patience,
            monotonic=clock or Clock(step=0.001),
            stop=stop or threading.Event(),
            rate=rate,
            allowance=lambda received: allowance and replace(allowance, spent=received),
        )
    )


def read_all(source: Download) -> bytes:
    pieces = []
    while source.position < len(DATA):
        pieces.append(source.read_exactly(min(PIECE, len(DATA) - source.position)))
    return b"".join(pieces)


def asked_ranges(server: PayloadServer) -> list[int]:
    return [int(text.removeprefix("bytes=")[:-1] or 0) if text else 0 for text in server.requests]


class Waits(threading.Event):
    """A stop that nobody sets; time passes while it is waited for, and only then."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.waited = 0.0

    @override
    def wait(self, timeout: float | None = None) -> bool:
        self.waited += timeout or 0
        self.clock.now += timeout or 0
        return False


class TestARate:
    def test_is_kept_over_the_whole_payload(self, stack: ExitStack) -> None:
        clock = Clock()
        waits = Waits(clock)
        source = download(stack, serve(stack).base, rate=100_000, clock=clock, stop=waits)
        assert read_all(source) == DATA
        burst = 0.25  # seconds of the rate come at once
        assert waits.waited == pytest.approx(len(DATA) / 100_000 - burst, abs=0.3)

    def test_none_waits_for_nothing(self, stack: ExitStack) -> None:
        clock = Clock()
        waits = Waits(clock)
        assert read_all(download(stack, serve(stack).base, clock=clock, stop=waits)) == DATA
        assert waits.waited == 0

    def test_a_stop_ends_the_wait(self, stack: ExitStack) -> None:
        stop = threading.Event()
        source = download(stack, serve(stack).base, rate=8192, stop=stop)
        source.read_exactly(4096)
        stop.set()
        with pytest.raises(DownloadStoppedError):
            source.read_exactly(500_000)


def allowed(size: int) -> Allowance:
    return Allowance(error=UpdateBudgetError, limit=size, spent=0, words="the update")


class TestAnAllowance:
    def test_of_just_as_many_bytes_is_enough(self, stack: ExitStack) -> None:
        assert read_all(download(stack, serve(stack).base, allowance=allowed(len(DATA)))) == DATA

    def test_ends_the_download_before_what_it_does_not_suffice_for(self, stack: ExitStack) -> None:
        source = download(stack, serve(stack).base, allowance=allowed(123_456))
        source.read_exactly(100_000)
        with pytest.raises(UpdateBudgetError, match=r"0\.1 MB came.*the update allows"):
            source.read_exactly(23_457)
        assert source.received == 100_000
        source.read_exactly(23_456)

    def test_counts_what_is_thrown_away(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(ranges=False))
        source = download(stack, server.base, allowance=allowed(600_000))
        source.seek(500_000)
        with pytest.raises(UpdateBudgetError):
            source.read_exactly(100_001)
        assert source.received == 500_000
        assert len(source.read_exactly(100_000)) == 100_000


class TestAPayloadThatIsNotThere:
    @pytest.mark.parametrize("status", [404, 410])
    def test_is_told_from_a_network_that_fails(self, stack: ExitStack, status: int) -> None:
        one, two = serve(stack, Manners(status=status)), serve(stack, Manners(status=404))
        with pytest.raises(PayloadMissingError):
            download(stack, one.base, two.base, patience=ONCE).read_exactly(1)

    def test_another_file_under_its_name_is_not_it(self, stack: ExitStack) -> None:
        server = serve(stack, data=DATA[:-1])
        with pytest.raises(PayloadMissingError):
            download(stack, server.base, patience=ONCE).read_exactly(1)

    @pytest.mark.parametrize("status", [403, 500, 503])
    def test_one_mirror_that_may_have_it_is_worth_another_try(
        self, stack: ExitStack, status: int
    ) -> None:
        one, two = serve(stack, Manners(status=404)), serve(stack, Manners(status=status))
        with pytest.raises(DownloadError) as caught:
            download(stack, one.base, two.base, patience=ONCE).read_exactly(1)
        assert not isinstance(caught.value, PayloadMissingError)


class TestOneGoodMirror:
    def test_gives_all_bytes_in_one_request(self, stack: ExitStack) -> None:
        server = serve(stack)
        source = download(stack, server.base)
        assert read_all(source) == DATA
        assert source.received == len(DATA) == source.position
        assert server.requests == [""]

    def test_gives_the_rest_from_a_position_by_a_range(self, stack: ExitStack) -> None:
        server = serve(stack)
        source = download(stack, server.base)
        source.seek(700_000)
        assert source.read_exactly(300_000) == DATA[700_000:]
        assert server.requests == ["bytes=700000-"]
        assert source.received == 300_000

    def test_without_ranges_the_bytes_before_are_thrown_away_and_counted(
        self, stack: ExitStack
    ) -> None:
        server = serve(stack, Manners(ranges=False))
        source = download(stack, server.base)
        source.seek(700_000)
        assert source.read_exactly(300_000) == DATA[700_000:]
        assert source.received == len(DATA)

    def test_is_not_asked_anew_for_what_lies_a_little_ahead(self, stack: ExitStack) -> None:
        server = serve(stack)
        source = download(stack, server.base)
        source.read_exactly(24)
        source.seek(1000)
        assert source.read_exactly(10) == DATA[1000:1010]
        source.seek(900_000)
        assert source.read_exactly(10) == DATA[900_000:900_010]
        source.seek(0)
        assert source.read_exactly(10) == DATA[:10]
        assert asked_ranges(server) == [0, 900_000, 0]

    def test_that_speaks_in_chunks_of_unknown_number_will_do(self, stack: ExitStack) -> None:
        def chunked(talk: Talk) -> None:
            talk.head(200, Transfer_Encoding="chunked")
            for start in range(0, len(DATA), PIECE):
                piece = DATA[start : start + PIECE]
                talk.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            talk.send(b"0\r\n\r\n")

        source = download(stack, scripted(stack, chunked).base)
        assert read_all(source) == DATA


class TestBrokenTransfers:
    def test_go_on_where_they_stopped(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(cut_after=3 * 64 * 1024))
        source = download(stack, server.base)
        assert read_all(source) == DATA
        ranges = asked_ranges(server)
        assert ranges == sorted(set(ranges)), "nothing was asked for twice"
        assert len(ranges) > 3
        assert source.received == len(DATA)

    def test_cost_a_re_read_where_ranges_are_unknown(self, stack: ExitStack) -> None:
        server = scripted(stack, cut(DATA, 400_000), reply(200, DATA))
        source = download(stack, server.base)
        assert read_all(source) == DATA
        assert source.received == 400_000 + len(DATA)

    def test_that_never_get_further_end_with_an_error(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(ranges=False, cut_after=64 * 1024))
        source = download(stack, server.base)
        with pytest.raises(DownloadError, match="after 3 tries on each of 1 mirrors") as caught:
            read_all(source)
        assert caught.value.exit_status == EXIT_CANNOT_TELL
        assert len(server.requests) == FAST.retries + 1

    def test_after_long_silence_of_all_mirrors_a_server_without_ranges_will_do(
        self, stack: ExitStack
    ) -> None:
        """What came before the outage must not make the new transfer look slow."""
        server = scripted(stack, cut(DATA, 200), reply(200, DATA))
        clock = Clock()
        source = download(stack, server.base, clock=clock, patience=FAST)
        assert source.read_exactly(100) == DATA[:100]
        clock.now += 10 * RATE_WINDOW_SECS
        source.seek(500_000)
        assert source.read_exactly(1000) == DATA[500_000:501_000]


class TestSeveralMirrors:
    def test_the_next_is_asked_when_one_answers_with_an_error(self, stack: ExitStack) -> None:
        bad = serve(stack, Manners(status=503))
        good = serve(stack)
        source = download(stack, bad.base, good.base)
        assert read_all(source) == DATA
        assert (len(bad.requests), len(good.requests)) == (1, 1)
        assert source.mirror.startswith(good.base)

    def test_the_next_goes_on_where_one_broke(self, stack: ExitStack) -> None:
        bad = serve(stack, Manners(cut_after=5 * 64 * 1024))
        good = serve(stack)
        source = download(stack, bad.base, good.base)
        assert read_all(source) == DATA
        assert asked_ranges(good) == [5 * 64 * 1024]

    def test_all_are_tried_as_often_as_allowed_before_giving_up(self, stack: ExitStack) -> None:
        servers = [serve(stack, Manners(status=status)) for status in (404, 500, 403)]
        source = download(stack, *(server.base for server in servers))
        with pytest.raises(DownloadError, match="on each of 3 mirrors"):
            source.read_exactly(1)
        assert [len(server.requests) for server in servers] == [FAST.retries + 1] * 3

    def test_one_that_nobody_listens_at_is_passed_over(self, stack: ExitStack) -> None:
        with PayloadServer() as gone:
            nobody = gone.base
        good = serve(stack)
        source = download(stack, nobody, good.base)
        assert read_all(source) == DATA


REFUSED: Final[dict[str, Callable[[], Manners]]] = {
    "a page of a proxy": lambda: Manners(page=b"<html>Please log in.</html>"),
    "an error": lambda: Manners(status=500),
    "another range than asked": lambda: Manners(shift_ranges=512),
}


@pytest.mark.parametrize("manners", REFUSED.values(), ids=REFUSED)
def test_what_is_not_our_payload_is_not_taken_for_it(
    stack: ExitStack, manners: Callable[[], Manners]
) -> None:
    bad = serve(stack, manners())
    good = serve(stack)
    source = download(stack, bad.base, good.base)
    source.seek(500_000)
    assert source.read_exactly(1000) == DATA[500_000:501_000]
    assert len(bad.requests) == 1


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_of_another_length_is_another_file(
    stack: ExitStack, change: int, ranges: bool
) -> None:
    other = DATA[:change] if change < 0 else DATA + b"x"
    source = download(stack, serve(stack, Manners(ranges=ranges), data=other).base)
    source.seek(500_000)
    with pytest.raises(DownloadError, match=f"it has {len(other)} bytes there, not {len(DATA)}"):
        source.read_exactly(1)
    assert source.received == 0


BAD_ANSWERS: Final[dict[str, tuple[Answer, str]]] = {
    "gzip": (reply(200, DATA, Content_Encoding="gzip"), "encodes what must come as it is"),
    "no range named": (reply(206, DATA[500_000:]), "another range than asked"),
    "a range of another file": (
        reply(206, DATA[500_000:], Content_Range="bytes 500000-999999/1000001"),
        "it has 1000001 bytes there",
    ),
    "several ranges": (
        reply(206, DATA, Content_Type="multipart/byteranges; boundary=x"),
        "another range than asked",
    ),
    "range not satisfiable": (reply(416), "answered 416"),
    "nothing": (reply(204), "answered 204"),
}


@pytest.mark.parametrize(("answer", "why"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_odd_answer_is_refused(stack: ExitStack, answer: Answer, why: str) -> None:
    source = download(stack, scripted(stack, answer).base)
    source.seek(500_000)
    with pytest.raises(DownloadError, match=why):
        source.read_exactly(1000)


class TestRedirects:
    def test_are_followed_to_a_mirror_nearby(self, stack: ExitStack) -> None:
        near = serve(stack)
        far = scripted(stack, reply(302, Location=f"{near.base}/{NAME}"))
        source = download(stack, far.base)
        source.seek(500_000)
        assert source.read_exactly(1000) == DATA[500_000:501_000]
        assert near.requests == ["bytes=500000-"]

    def test_may_be_relative(self, stack: ExitStack) -> None:
        server = scripted(stack, reply(307, Location="../there"), reply(200, DATA))
        assert read_all(download(stack, f"{server.base}/here")) == DATA
        assert [asked.path for asked in server.asked] == [f"/here/{NAME}", "/there"]

    @pytest.mark.parametrize(
        "answer", [reply(302, Location="/again"), reply(302)], ids=["again", "nowhere"]
    )
    def test_in_circles_are_left(self, stack: ExitStack, answer: Answer) -> None:
        server = scripted(stack, answer)
        with pytest.raises(DownloadError, match=f"redirected more than {REDIRECTS_MAX} times"):
            download(stack, server.base, patience=ONCE).read_exactly(1)
        assert len(server.asked) == REDIRECTS_MAX + 1

    @pytest.mark.parametrize("scheme", ["ftp", "file"])
    def test_to_another_scheme_are_refused(self, stack: ExitStack, scheme: str) -> None:
        server = scripted(stack, reply(302, Location=f"{scheme}://127.0.0.1/{NAME}"))
        with pytest.raises(DownloadError, match=f"redirected from http to {scheme}"):
            download(stack, server.base).read_exactly(1)


class TestSlowMirrors:
    @pytest.mark.parametrize(
        "answer",
        [silent, dripping_headers, stalled(DATA, 0), stalled(DATA, 4000)],
        ids=["no answer", "headers without an end", "no body", "silence in the body"],
    )
    def test_are_left_for_the_next(self, stack: ExitStack, answer: Answer) -> None:
        slow = scripted(stack, answer)
        good = serve(stack)
        source = download(stack, slow.base, good.base, patience=HASTY)
        assert source.read_exactly(8000) == DATA[:8000]
        assert slow.asked
        assert good.requests

    def test_that_trickle_are_left_when_it_takes_too_long(self, stack: ExitStack) -> None:
        """A byte now and then is no silence; a minute passes at each look at the clock here."""
        slow = scripted(stack, dripping_body(DATA))
        good = serve(stack)
        source = download(stack, slow.base, good.base, clock=Clock(step=60))
        assert source.read_exactly(400) == DATA[:400]
        assert len(slow.asked) == 1
        assert good.requests, "all of it was waited for"

    def test_are_kept_while_they_are_faster_than_that(self, stack: ExitStack) -> None:
        server = serve(stack)
        clock = Clock()
        source = download(stack, server.base, clock=clock)
        source.read_exactly(RATE_WINDOW_BYTES + 1000)
        clock.now += RATE_WINDOW_SECS
        source.read_exactly(1000)
        assert len(server.requests) == 1
        clock.now += RATE_WINDOW_SECS  # since the last look only a little came
        source.read_exactly(1000)
        assert len(server.requests) == 2


class TestTheSignedSize:
    def test_is_never_read_beyond(self, stack: ExitStack) -> None:
        source = download(stack, serve(stack).base)
        source.seek(len(DATA) - 10)
        with pytest.raises(DownloadError, match="were asked of a payload of 1000000 bytes"):
            source.read_exactly(11)
        assert source.read_exactly(10) == DATA[-10:]
        with pytest.raises(DownloadError):
            source.read_exactly(1)

    def test_bounds_a_server_that_announces_none(self, stack: ExitStack) -> None:
        def endless(talk: Talk) -> None:
            talk.head(200, Connection="close")
            while not talk.ending.is_set():
                talk.send(DATA)

        source = download(stack, scripted(stack, endless).base)
        assert read_all(source) == DATA
        assert source.received == len(DATA)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread.

    Raises:
        AssertionError: it never comes to that.
    """
    for _ in range(LOOKS):
        if condition():
            return
        time.sleep(LOOK_SECS)
    raise AssertionError("the other thread never comes to that")


def ended(thread: threading.Thread) -> None:
    """Wait for the end of a thread, that should be near."""
    thread.join(LOOKS * LOOK_SECS)
    assert not thread.is_alive()


def in_a_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start `work`; returns its thread and what it raised, once it has ended."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # handed to the test
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, raised


class TestStopping:
    @pytest.mark.parametrize(
        "answer",
        [silent, dripping_headers, stalled(DATA, 0), stalled(DATA, 4000), dripping_body(DATA)],
        ids=["no answer", "headers without an end", "no body", "silence in the body", "trickle"],
    )
    def test_ends_a_read_wherever_it_is(self, stack: ExitStack, answer: Answer) -> None:
        """The time-outs are of a day: only the interruption can end this."""
        server = scripted(stack, answer)
        source = download(stack, server.base, patience=DAY)
        thread, raised = in_a_thread(lambda: source.read_exactly(8000))
        wait_until(lambda: bool(server.asked))
        source.interrupt()
        ended(thread)
        assert [type(error) for error in raised] == [DownloadStoppedError]

    def test_ends_the_pause_between_two_tries(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(status=500))
        for end in ("interrupt", "stop"):
            stop = threading.Event()
            source = download(stack, server.base, patience=DAY, stop=stop)
            server.requests.clear()
            thread, raised = in_a_thread(lambda source=source: source.read_exactly(1))  # type: ignore[misc]
            wait_until(lambda: bool(server.requests))
            source.interrupt() if end == "interrupt" else stop.set()
            ended(thread)
            assert [type(error) for error in raised] == [DownloadStoppedError], end

    def test_comes_before_the_first_byte(self, stack: ExitStack) -> None:
        stop = threading.Event()
        stop.set()
        server = serve(stack)
        with pytest.raises(DownloadStoppedError):
            download(stack, server.base, stop=stop).read_exactly(1)
        assert server.requests == []

    def test_is_final(self, stack: ExitStack) -> None:
        source = download(stack, serve(stack).base)
        source.read_exactly(1)
        source.interrupt()
        for _ in range(2):
            with pytest.raises(DownloadStoppedError):
                source.read_exactly(1)


def test_the_pauses_between_two_tries_double(stack: ExitStack) -> None:
    waits: list[float] = []

    class Waiting(threading.Event):
        @override
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    server = serve(stack, Manners(status=500))
    patience = Patience(idle_timeout_secs=10, retries=7, retry_delay_secs=1)
    source = download(stack, server.base, patience=patience, stop=Waiting())
    with pytest.raises(DownloadError):
        source.read_exactly(1)
    assert sum(waits) == pytest.approx(1 + 2 + 4 + 8 + 16 + 32 + 60)


class TestTls:
    @pytest.fixture
    def tls(self, tmp_path: Path) -> TlsFiles:
        return make_tls_files(tmp_path)

    def source(
        self, stack: ExitStack, tls: TlsFiles, server: ScriptedServer, patience: Patience = ONCE
    ) -> Download:
        return stack.enter_context(
            Download(
                [f"{server.base}/{NAME}"],
                size=len(DATA),
                session=open_session(ca_file=tls.ca),
                patience=patience,
                monotonic=Clock(step=0.001),
                stop=threading.Event(),
            )
        )

    def test_https_is_not_left_for_http(self, stack: ExitStack, tls: TlsFiles) -> None:
        near = serve(stack)
        answer = reply(302, Location=f"{near.base}/{NAME}")
        server = stack.enter_context(ScriptedServer(script=[answer], tls=tls))
        with pytest.raises(DownloadError, match="redirected from https to http"):
            self.source(stack, tls, server).read_exactly(1)
        assert near.requests == []

    def test_a_silent_mirror_is_cut_through_tls_too(self, stack: ExitStack, tls: TlsFiles) -> None:
        script = [dripping_headers, dripping_body(DATA)]
        server = stack.enter_context(ScriptedServer(script=script, tls=tls))
        hasty = Patience(idle_timeout_secs=0.3, retries=0, retry_delay_secs=0)
        with pytest.raises(DownloadError, match="no answer"):
            self.source(stack, tls, server, hasty).read_exactly(1)
        source = self.source(stack, tls, server, DAY)
        thread, raised = in_a_thread(lambda: source.read_exactly(8000))
        wait_until(lambda: len(server.asked) >= 2)
        source.interrupt()
        ended(thread)
        assert [type(error) for error in raised] == [DownloadStoppedError]

    def test_a_stranger_is_not_asked(self, stack: ExitStack, tls: TlsFiles) -> None:
        server = stack.enter_context(ScriptedServer(script=[reply(200, DATA)], tls=tls))
        with pytest.raises(DownloadError, match="no answer: SSLError"):
            download(stack, server.base, patience=ONCE).read_exactly(1)
        assert server.asked == []


class TestExpectedRanges:
    SPANS = ((100_000, 150_000), (700_000, 800_000))

    def test_each_is_one_request_of_just_its_bytes(self, stack: ExitStack) -> None:
        server = serve(stack)
        source = download(stack, server.base)
        source.expect(self.SPANS)
        for start, end in self.SPANS:
            source.seek(start)
            assert source.read_exactly(1000) == DATA[start : start + 1000]
            source.seek(start + 30_000)
            assert source.read_exactly(end - start - 30_000) == DATA[start + 30_000 : end]
        assert server.requests == ["bytes=100000-149999", "bytes=700000-799999"]
        assert source.received == 150_000
        assert source.serves_ranges

    def test_a_server_without_ranges_is_asked_once(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(ranges=False))
        source = download(stack, server.base)
        source.expect(self.SPANS)
        for start, end in self.SPANS:
            source.seek(start)
            assert source.read_exactly(end - start) == DATA[start:end]
        assert len(server.requests) == 1
        assert not source.serves_ranges

    def test_one_that_breaks_goes_on_within_its_range(self, stack: ExitStack) -> None:
        server = serve(stack, Manners(cut_after=64 * 1024))
        source = download(stack, server.base)
        source.expect(self.SPANS)
        source.seek(700_000)
        assert source.read_exactly(100_000) == DATA[700_000:800_000]
        assert server.requests[0] == "bytes=700000-799999"
        assert all(text.endswith("-799999") for text in server.requests)
        assert len(server.requests) >= 2
