"""Who may do what, with a stand-in for polkit on the bus that says yes, no, or nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.sim.bus_node import NAME, OBJECT, BusNode, bus_node
from tests.sim.message_bus import NOBODY
from updater.bus import rights
from updater.bus.errors import NotAuthorizedError
from updater.bus.library import Caller, Interface, Method, open_bus, plain, words_by_code
from updater.bus.rights import admit

pytestmark = pytest.mark.e2e


@dataclass
class Polkit:
    """Answers CheckAuthorization as `answer` says; None for never.

    Attributes:
        asked: subject, action and flags of every question.
        cancelled: the questions that were taken back.
    """

    address: str
    answer: bool | None = True
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def check(self, _caller: Caller, *arguments: Any) -> Sequence[object]:  # noqa: ANN401  # D-Bus values
        (kind, details), action, _, flags, _ticket = arguments
        assert kind == "system-bus-name"
        subject = plain(details)
        assert isinstance(subject, dict)
        self.asked.append((subject["name"], action, flags))
        if self.answer is None:
            await asyncio.sleep(3600)
        return ([self.answer, False, {}],)

    async def cancel(self, _caller: Caller, ticket: str) -> Sequence[object]:
        self.cancelled.append(ticket)
        return ()

    async def serve(self, ready: threading.Event, ending: threading.Event) -> None:
        bus = await open_bus(self.address)
        takes = {"subject": "(sa{sv})", "action": "s", "details": "a{ss}", "flags": "u", "id": "s"}
        methods = [
            Method(name="CheckAuthorization", do=self.check, takes=takes, gives={"r": "(bba{ss})"}),
            Method(name="CancelCheckAuthorization", do=self.cancel, takes={"id": "s"}),
        ]
        interface = Interface(
            name=rights.POLKIT_INTERFACE, methods=methods, error_words=words_by_code
        )
        bus.export(rights.POLKIT_PATH, interface)
        await bus.own(rights.POLKIT)
        ready.set()
        await asyncio.to_thread(ending.wait)
        await bus.close()


@contextmanager
def polkit(address: str, *, answer: bool | None) -> Iterator[Polkit]:
    authority = Polkit(address, answer=answer)
    ready, ending = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(authority.serve(ready, ending)))
    thread.start()
    try:
        assert ready.wait(20)
        yield authority
    finally:
        ending.set()
        thread.join()


@pytest.fixture(scope="module")
def node() -> Iterator[BusNode]:
    with bus_node() as made:
        made.start()
        made.wait_on_bus()
        yield made


def hold(node: BusNode, *, user: int = NOBODY) -> str:
    quiet = "--allow-interactive-authorization=no"  # busctl allows it unless told
    done = node.bus.busctl(quiet, "call", NAME, OBJECT, NAME, "Hold", "a{sv}", "0", user=user)
    return done.stderr if done.returncode else "done"


def test_what_polkit_grants_is_done_in_the_callers_name(node: BusNode) -> None:
    with polkit(node.bus.address, answer=True) as authority:
        assert hold(node) == "done"
    assert [(action, flags) for _, action, flags in authority.asked] == [("org.bascule.hold", 0)]
    stored = node.world.node().store.read_hold()
    assert stored is not None
    assert stored.by == "nobody"
    node.call("Unhold")


def test_what_polkit_denies_is_not_done(node: BusNode) -> None:
    with polkit(node.bus.address, answer=False):
        assert "user nobody may not hold: org.bascule.hold" in hold(node)
    assert node.world.node().store.read_hold() is None


def test_root_is_not_asked_about(node: BusNode) -> None:
    with polkit(node.bus.address, answer=False) as authority:
        assert hold(node, user=0) == "done"
    assert authority.asked == []
    node.call("Unhold")


@pytest.mark.parametrize("words", [("--allow-interactive-authorization=yes",), ()])
def test_a_person_is_asked_for_a_password_only_when_the_caller_says_so(
    node: BusNode, words: tuple[str, ...]
) -> None:
    with polkit(node.bus.address, answer=True) as authority:
        option = ("a{sv}", "0") if words else ("a{sv}", "1", "interactive", "b", "true")
        done = node.bus.busctl(
            *(words or ("--allow-interactive-authorization=no",)),
            "call", NAME, OBJECT, NAME, "Hold", *option, user=NOBODY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert [flags for _, _, flags in authority.asked] == [rights.ALLOW_USER_INTERACTION]
    node.call("Unhold")


def test_a_silent_polkit_is_a_no_and_the_question_is_taken_back(
    node: BusNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "POLKIT_TIMEOUT_SECS", 0.1)
    monkeypatch.setattr(rights, "user_of", _nobody)

    async def ask() -> None:
        bus = await open_bus(node.bus.address)
        try:
            caller = Caller(bus.unique_name)
            with pytest.raises(NotAuthorizedError, match="did not answer in time"):
                await admit(bus, caller, "update", interactive=False)
        finally:
            await bus.close()

    with polkit(node.bus.address, answer=None) as authority:
        asyncio.run(ask())
    assert len(authority.cancelled) == 1


async def _nobody(*_: object) -> int:
    return NOBODY
