from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from images.errors import FileUnreadableError
from tests.sim.scripted_server import (
    Answer,
    ScriptedServer,
    Talk,
    cut,
    dripping_body,
    dripping_headers,
    endless,
    reply,
    silent,
)
from updater.errors import EXIT_CANNOT_TELL
from updater.omaha import (
    Action,
    AppRequest,
    AppResponse,
    Manifest,
    Package,
    Response,
    UpdateCheckResult,
    decode_request,
    encode_response,
)
from updater.omaha.codec import RESPONSE_MAX_BYTES
from updater.omaha.codes import EngineError
from updater.omaha.messages import ON_DEMAND, SCHEDULED
from updater.state import Report, Store
from updater.steering import (
    SENTENCE_MAX_CHARS,
    Reporter,
    Self,
    ServerRefusedError,
    ServerUnreachableError,
    Steering,
    flush,
)
from updater.trust.fetcher import open_session
from updater.trust.view import Offer, OfferedFile

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SHA256: Final = "ab" * 32
NODE: Final = Self(
    product="acme-os",
    board="amd64-usr",
    version="1.0.0",
    group="canary",
    machine_id="0123456789abcdef0123456789abcdef",
    host="node-1",
    boot_id="6b7c0a52-6f5e-4f30-9d6b-6a3d2c1d8f00",
    state="idle",
    slot="a",
)
NO_UPDATE: Final = UpdateCheckResult(status="noupdate", reason="group-paused", sentence="paused")
AMPLE_SECS: Final = 60.0
SHORT_SECS: Final = 0.3


def app_of(check: UpdateCheckResult | None, status: str = "ok") -> Answer:
    """Answer as a server for our product does."""
    app = AppResponse(app_id=NODE.product, status=status, update_check=check)
    return reply(200, encode_response(Response(apps=(app,))))


def offer(
    *, packages: tuple[Package, ...], codebases: tuple[str, ...] = (), actions: bool = False
) -> UpdateCheckResult:
    action = (Action(sha256=SHA256),) if actions else ()
    manifest = Manifest(version="2.0.0", packages=packages, actions=action)
    return UpdateCheckResult(status="ok", codebases=codebases, manifests=(manifest,))


PACKAGE: Final = Package(name="payload.crau", size_bytes=4096, sha256=SHA256)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def serve(stack: ExitStack, *script: Answer) -> ScriptedServer:
    return stack.enter_context(ScriptedServer(script=script))


def steering(server: ScriptedServer, timeout_secs: float = AMPLE_SECS) -> Steering:
    return Steering(f"{server.base}/v1/update/", session=open_session, timeout_secs=timeout_secs)


def heard(server: ScriptedServer, number: int = -1) -> AppRequest:
    """Return what the server was told in a request."""
    return decode_request(server.asked[number].body).apps[0]


class TestAsking:
    def test_says_who_asks_and_why(self, stack: ExitStack) -> None:
        server = serve(stack, app_of(NO_UPDATE))
        for by_person, source in ((False, SCHEDULED), (True, ON_DEMAND)):
            steering(server).ask(NODE, by_person=by_person)
            assert decode_request(server.asked[-1].body).install_source == source
        app = heard(server)
        assert (app.app_id, app.version, app.track) == ("acme-os", "1.0.0", "canary")
        assert (app.machine_id, app.machine_alias) == (NODE.machine_id, "node-1")
        assert app.boot_id == "{6b7c0a52-6f5e-4f30-9d6b-6a3d2c1d8f00}"
        assert (app.board, app.state, app.slot) == ("amd64-usr", "idle", "a")
        assert app.ping is not None
        assert app.update_check is not None
        assert server.asked[-1].path == "/v1/update/"
        assert server.asked[-1].headers["Accept-Encoding"] == "identity"

    def test_nothing_now_comes_with_its_reason(self, stack: ExitStack) -> None:
        hint = steering(serve(stack, app_of(NO_UPDATE))).ask(NODE, by_person=False)
        assert (hint.offer, hint.code, hint.sentence) == (None, "group-paused", "paused")

    def test_a_stock_server_gives_no_reason(self, stack: ExitStack) -> None:
        server = serve(stack, app_of(UpdateCheckResult(status="noupdate")))
        hint = steering(server).ask(NODE, by_person=False)
        assert (hint.code, hint.sentence) == ("server-noupdate", "the server answered noupdate")

    def test_an_offer_is_a_version_and_what_is_said_of_one_file(self, stack: ExitStack) -> None:
        check = offer(packages=(PACKAGE,), codebases=("https://one.example/p", "http://two/"))
        hint = steering(serve(stack, app_of(check))).ask(NODE, by_person=False)
        file = OfferedFile(name="payload.crau", sha256=SHA256, size=4096)
        assert hint.offer == Offer(version="2.0.0", files=(file,))
        assert hint.urls == ("https://one.example/p/payload.crau", "http://two/payload.crau")

    def test_an_old_server_names_the_hash_in_the_action(self, stack: ExitStack) -> None:
        check = offer(packages=(Package(name="update.gz", size_bytes=0),), actions=True)
        hint = steering(serve(stack, app_of(check))).ask(NODE, by_person=False)
        assert hint.offer is not None
        assert hint.offer.files == (OfferedFile(name="update.gz", sha256=SHA256, size=None),)

    def test_places_that_are_no_http_are_left_out_and_the_rest_bounded(
        self, stack: ExitStack
    ) -> None:
        bases = ("ftp://x/", "file:///etc/", *(f"http://mirror-{n}/" for n in range(100)))
        check = offer(packages=(PACKAGE,), codebases=bases)
        urls = steering(serve(stack, app_of(check))).ask(NODE, by_person=False).urls
        assert 0 < len(urls) <= 16
        assert all(url.startswith("http://mirror-") for url in urls)

    def test_the_server_may_say_when_it_wants_to_be_asked_again(self, stack: ExitStack) -> None:
        check = UpdateCheckResult(status="noupdate", poll_interval_s=600)
        assert steering(serve(stack, app_of(check))).ask(NODE, by_person=False).poll_secs == 600

    def test_a_server_that_does_not_know_the_product_refuses(self, stack: ExitStack) -> None:
        server = serve(stack, app_of(None, status="error-unknownApplication"))
        with pytest.raises(ServerRefusedError, match="'error-unknownApplication' for acme-os"):
            steering(server).ask(NODE, by_person=False)


PAGE: Final = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
NO_APP: Final = encode_response(Response(apps=()))
UNUSABLE: Final[dict[str, tuple[Answer, str]]] = {
    "a page": (reply(200, PAGE, Content_Type="text/html"), "gave no Omaha answer"),
    "nothing": (reply(200, b""), "gave no Omaha answer"),
    "half an answer": (cut(NO_APP, len(NO_APP) // 2), "cannot be reached: "),
    "another protocol": (reply(200, b"{}"), "gave no Omaha answer"),
    "entities": (
        reply(200, b'<!DOCTYPE x [<!ENTITY a "aaaa">]><response protocol="3.0">&a;</response>'),
        "gave no Omaha answer",
    ),
    "no app": (reply(200, NO_APP), "answered without an app"),
    "no check": (app_of(None), "it answered without an update check"),
    "an offer without a file": (app_of(offer(packages=())), "without naming its file"),
    "an error": (reply(500, b"<response/>"), "answered 500"),
    "a redirect": (reply(302, Location="http://127.0.0.1:1/"), "answered 302"),
    "without an end": (endless, f"answered more than {RESPONSE_MAX_BYTES} bytes"),
    "too much": (
        reply(200, b" " * (RESPONSE_MAX_BYTES + 1)),
        f"answered more than {RESPONSE_MAX_BYTES} bytes",
    ),
    "gzip": (reply(200, b"\x1f\x8b\x08", Content_Encoding="gzip"), "gave no Omaha answer"),
}


@pytest.mark.parametrize(("answer", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_answer_is_as_good_as_none(stack: ExitStack, answer: Answer, why: str) -> None:
    with pytest.raises(ServerUnreachableError, match=why) as caught:
        steering(serve(stack, answer)).ask(NODE, by_person=False)
    assert (caught.value.code, caught.value.exit_status) == ("server-unreachable", EXIT_CANNOT_TELL)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer",
    [silent, dripping_headers, dripping_body(b" " * 10_000)],
    ids=["no answer", "headers without an end", "a body that trickles"],
)
def test_an_answer_that_does_not_end_in_time_is_none(stack: ExitStack, answer: Answer) -> None:
    with pytest.raises(ServerUnreachableError, match=r"it took longer than 0.3 s|ReadTimeout"):
        steering(serve(stack, answer), SHORT_SECS).ask(NODE, by_person=False)


def test_a_cut_body_of_unknown_length_is_not_taken_for_a_whole_one(stack: ExitStack) -> None:
    """A whole answer came, but not its end: more could have followed."""

    def hanging(talk: Talk) -> None:
        talk.head(200, Connection="close")
        app = AppResponse(app_id=NODE.product, update_check=NO_UPDATE)
        talk.send(encode_response(Response(apps=(app,))))
        talk.hold()

    with pytest.raises(ServerUnreachableError, match=r"it took longer than 0.3 s|ReadTimeout"):
        steering(serve(stack, hanging), SHORT_SECS).ask(NODE, by_person=False)


def test_a_server_that_is_not_there_is_named() -> None:
    with ScriptedServer() as gone:
        url = gone.base
    nobody = Steering(url, session=open_session, timeout_secs=AMPLE_SECS)
    with pytest.raises(ServerUnreachableError, match=f"{url} cannot be reached: ConnectionError"):
        nobody.ask(NODE, by_person=False)


def report(number: int = 1, **changes: object) -> Report:
    facts: dict[str, object] = {
        "event_type": 3,
        "event_result": 2,
        "at": NOW,
        "version": f"{number}.0.0",
        "previous_version": "0.9.0",
        "next_version": f"{number}.0.0",
    }
    return Report(**facts | changes)  # type: ignore[arg-type]  # as named


class TestTelling:
    def test_events_are_told_in_order_and_nothing_is_asked(self, stack: ExitStack) -> None:
        server = serve(stack, app_of(None))
        failed = report(2, event_result=0, code="trial-unhealthy", sentence="check web failed")
        steering(server).tell(NODE, [report(1), failed])
        app = heard(server)
        assert (app.ping, app.update_check) == (None, None)
        first, second = app.events
        assert (first.type, first.result, first.error_code) == (3, 2, None)
        assert (first.previous_version, first.next_version) == ("0.9.0", "1.0.0")
        assert (second.error_code, second.next_version) == (EngineError.ROLLBACK, "2.0.0")
        assert (second.bascule_code, second.bascule_sentence) == (
            "trial-unhealthy",
            "check web failed",
        )

    def test_no_sentence_can_block_the_queue(self, stack: ExitStack) -> None:
        server = serve(stack, app_of(None))
        bad = report(event_result=0, code="step-failed", sentence="\x00\ud800\n<" + "x" * 9999)
        steering(server).tell(NODE, [bad] * 64)
        sentence = heard(server).events[0].bascule_sentence
        assert sentence.startswith("???<xxx")
        assert len(sentence) == SENTENCE_MAX_CHARS

    def test_what_was_told_leaves_the_queue(self, stack: ExitStack, tmp_path: Path) -> None:
        server = serve(stack, app_of(None))
        store = Store(tmp_path)
        for number in (1, 2):
            store.queue_report(report(number))
        assert flush(store, steering(server), NODE) == 2
        assert store.read_reports() == []
        assert [event.next_version for event in heard(server).events] == ["1.0.0", "2.0.0"]
        assert flush(store, steering(server), NODE) == 0
        assert len(server.asked) == 1

    def test_what_could_not_be_told_stays(self, stack: ExitStack, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.queue_report(report())
        with pytest.raises(ServerUnreachableError):
            flush(store, steering(serve(stack, reply(500))), NODE)
        assert store.read_reports() == [report()]

    def test_what_is_queued_while_others_are_told_stays(
        self, stack: ExitStack, tmp_path: Path
    ) -> None:
        store = Store(tmp_path)
        store.queue_report(report(1))

        def meanwhile(talk: Talk) -> None:
            store.queue_report(report(2))
            app_of(None)(talk)

        flush(store, steering(serve(stack, meanwhile)), NODE)
        assert store.read_reports() == [report(2)]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread.

    Raises:
        AssertionError: it never comes to that.
    """
    for _ in range(30_000):  # a minute, for what takes a moment
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("the other thread never comes to that")


class TestReporter:
    """The sender's thread: nothing ever waits for it."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path)

    def reporter(
        self,
        stack: ExitStack,
        store: Store,
        asked: Steering,
        present: Callable[[], Self] = lambda: NODE,
        pause_secs: float = 86_400,
    ) -> Reporter:
        made = Reporter(store=store, steering=asked, present=present, pause_secs=pause_secs)
        made.start()
        stack.callback(made.close, AMPLE_SECS)
        return made

    def test_tells_when_it_is_woken(self, stack: ExitStack, store: Store) -> None:
        server = serve(stack, app_of(None))
        reporter = self.reporter(stack, store, steering(server))
        store.queue_report(report())
        assert server.asked == []
        reporter.wake()
        wait_until(lambda: store.read_reports() == [])
        assert heard(server).events[0].next_version == "1.0.0"

    def test_keeps_what_the_server_does_not_hear_and_tells_it_later(
        self, stack: ExitStack, store: Store
    ) -> None:
        server = serve(stack, reply(500), reply(200, PAGE), app_of(None))
        reporter = self.reporter(stack, store, steering(server))
        store.queue_report(report())
        for tries in (1, 2):
            reporter.wake()
            wait_until(lambda tries=tries: len(server.asked) == tries)  # type: ignore[misc]
            assert store.read_reports() == [report()]
        reporter.wake()
        wait_until(lambda: store.read_reports() == [])

    def test_tries_again_by_itself(self, stack: ExitStack, store: Store) -> None:
        server = serve(stack, reply(500), app_of(None))
        store.queue_report(report())
        self.reporter(stack, store, steering(server), pause_secs=0.01)
        wait_until(lambda: store.read_reports() == [])

    def test_queueing_does_not_wait_for_a_server_that_is_silent(
        self, stack: ExitStack, store: Store
    ) -> None:
        server = serve(stack, silent)
        reporter = self.reporter(stack, store, steering(server, 5 * SHORT_SECS))
        store.queue_report(report(1))
        reporter.wake()
        wait_until(lambda: len(server.asked) == 1)
        store.queue_report(report(2))  # returns, while the first is still being told
        assert store.read_reports() == [report(1), report(2)]

    def test_asks_nobody_who_the_node_is_when_nothing_is_queued(
        self, stack: ExitStack, store: Store
    ) -> None:
        looked = threading.Event()

        def present() -> Self:
            looked.set()
            return NODE

        server = serve(stack, app_of(None))
        reporter = self.reporter(stack, store, steering(server), present)
        reporter.wake()
        reporter.close(AMPLE_SECS)
        assert not looked.is_set()

    def test_outlives_a_node_that_cannot_say_who_it_is(
        self, stack: ExitStack, store: Store
    ) -> None:
        """Errors of other rooms and of the system must not end the thread."""
        errors: list[Exception] = [FileUnreadableError("no image.toml"), OSError("no such disk")]

        def present() -> Self:
            if errors:
                raise errors.pop()
            return NODE

        server = serve(stack, app_of(None))
        store.queue_report(report())
        self.reporter(stack, store, steering(server), present, pause_secs=0.01)
        wait_until(lambda: store.read_reports() == [])
        assert errors == []

    def test_leaves_what_is_queued_when_it_ends(self, stack: ExitStack, store: Store) -> None:
        server = serve(stack, app_of(None))
        reporter = self.reporter(stack, store, steering(server))
        reporter.close(AMPLE_SECS)
        store.queue_report(report())
        assert Store(store.folder).read_reports() == [report()]
        assert server.asked == []
