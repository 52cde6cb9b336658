"""Answers that are lost, late or never come: the outcome is the same, and known."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from tests.sim.etcd import EtcdServer, etcd_programs, free_port, running_etcd
from tests.sim.permits import (
    ALL_GROUPS,
    DOCUMENT,
    QUEUE,
    SOON,
    Nodes,
    check_history,
    holders,
    permitted,
    refused,
    sleepless,
)
from tests.sim.proxy import Fate, Proxy, Request, Rule, running_proxy
from updater.permit.contract import Permit, WaitReason
from updater.permit.errors import PermitUnavailableError
from updater.permit.keeper import TRIES_MAX

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not etcd_programs(), reason="no etcd on this machine"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("permits") / "etcd") as running:
        yield running


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.begin_anew(ALL_GROUPS)
    return server


@pytest.fixture
def proxy(etcd: EtcdServer) -> Iterator[Proxy]:
    with running_proxy(etcd.port) as running:
        yield running


@pytest.fixture
def nodes(proxy: Proxy, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, proxy.url)
    yield made
    proxy.rule = lambda _: Fate.PASS
    made.close()


class First:
    """A rule: this fate for the first swaps, then everything passes."""

    def __init__(self, fate: Fate, *, swaps: int = 1) -> None:
        self._fate = fate
        self._left = swaps

    def __call__(self, request: Request) -> Fate:
        if request.is_swap and self._left:
            self._left -= 1
            return self._fate
        return Fate.PASS


@contextlib.contextmanager
def running_web_server() -> Iterator[str]:
    """A web server that answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = b"<html>It works!</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def only_reads(request: Request) -> Fate:
    return Fate.REFUSE if request.is_swap else Fate.PASS


@pytest.mark.parametrize(
    ("fate", "swaps"),
    [
        (Fate.LOSE_ANSWER, 1),
        (Fate.LOSE_ANSWER, 3),
        (Fate.REFUSE, 1),
        (Fate.REFUSE, 3),
        (Fate.SWALLOW, 1),
    ],
)
def test_a_lost_answer_changes_no_outcome(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes, fate: Fate, swaps: int
) -> None:
    a = nodes.node("a", timeouts=SOON)

    proxy.rule = First(fate, swaps=swaps)
    permitted(a.acquire("update"))
    assert holders(etcd) == ["a"]

    proxy.rule = First(fate, swaps=swaps)
    assert a.release() is True
    assert holders(etcd) == []

    proxy.rule = First(fate, swaps=swaps)
    assert a.set_max(3).after == 3
    permitted(a.acquire("update"))
    proxy.rule = First(fate, swaps=swaps)
    assert a.return_for("a").id == "a"
    assert holders(etcd) == []
    check_history(etcd)


def test_when_no_answer_ever_comes_back_the_node_waits_and_is_told_why(
    proxy: Proxy, nodes: Nodes
) -> None:
    pauses: list[float] = []
    a = nodes.node("a", pace=sleepless(pauses))
    proxy.rule = only_reads

    waiting = refused(a.acquire("update"))

    assert waiting.reason is WaitReason.UNAVAILABLE
    assert "Remote end closed connection" in waiting.sentence
    assert len(pauses) == TRIES_MAX


def test_a_permit_whose_answer_was_lost_for_good_is_found_at_the_next_call(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes
) -> None:
    a = nodes.node("a")
    done: list[Request] = []

    def lose_then_refuse_all(request: Request) -> Fate:
        if done:
            return Fate.REFUSE
        if request.is_swap:
            done.append(request)
            return Fate.LOSE_ANSWER
        return Fate.PASS

    proxy.rule = lose_then_refuse_all
    assert refused(a.acquire("update")).code == "permit-unavailable"
    assert holders(etcd) == ["a"]

    proxy.rule = lambda _: Fate.PASS
    permitted(a.acquire("update"))
    assert len(etcd.history(DOCUMENT)) == 2


@pytest.mark.parametrize("group_exists", [True, False], ids=["existing group", "new group"])
def test_an_acquire_that_arrives_after_the_release_takes_no_place(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes, *, group_exists: bool
) -> None:
    a = nodes.node("a")
    if group_exists:
        a.set_max(1)
    proxy.rule = hold_first_then_refuse(proxy)
    refused(a.acquire("update"))
    proxy.rule = lambda _: Fate.PASS

    assert a.release() is False
    proxy.deliver_held()

    assert holders(etcd) == []


def test_a_release_that_arrives_after_the_next_acquire_takes_no_permit_away(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes
) -> None:
    a = nodes.node("a")
    permitted(a.acquire("update"))
    proxy.rule = hold_first_then_refuse(proxy)
    with pytest.raises(PermitUnavailableError):
        a.release()
    proxy.rule = lambda _: Fate.PASS

    reborn = nodes.node("a")  # a new process knows nothing of the old one's write
    permitted(reborn.acquire("update"))
    proxy.deliver_held()

    assert holders(etcd) == ["a"]
    assert refused(nodes.node("b").acquire("update")).reason is WaitReason.FULL


def hold_first_then_refuse(proxy: Proxy) -> Rule:
    """The first swap stays on its way; whatever comes after it fails at once."""

    def rule(request: Request) -> Fate:
        if proxy.held:
            return Fate.REFUSE
        return Fate.HOLD if request.is_swap else Fate.PASS

    return rule


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_messages_what_a_node_believes_is_so(
    etcd: EtcdServer, tmp_path: Path, seed: int
) -> None:
    """Two nodes share one place; their messages are lost, late, or arrive after all."""
    chance = random.Random(seed)
    fates = [Fate.PASS] * 12 + [Fate.LOSE_ANSWER] * 3 + [Fate.REFUSE] * 2 + [Fate.HOLD]
    believers: set[str] = set()
    fleet = Nodes(tmp_path)
    with running_proxy(etcd.port) as first, running_proxy(etcd.port) as second:
        proxies = {"a": first, "b": second}
        keepers = {name: fleet.node(name, proxy.url) for name, proxy in proxies.items()}
        for step in range(40):
            for proxy in proxies.values():
                proxy.rule = lambda request: chance.choice(fates) if request.is_swap else Fate.PASS
            name = chance.choice("ab")
            if chance.random() < 0.6:
                if isinstance(keepers[name].acquire(f"step {step}"), Permit):
                    believers.add(name)
            else:
                believers.discard(name)
                keepers[name].release()
                assert name not in holders(etcd)
            if chance.random() < 0.5:
                for proxy in proxies.values():
                    proxy.deliver_held()
            assert believers <= set(holders(etcd)), f"step {step}"
            assert len(believers) <= 1
        for proxy in proxies.values():
            proxy.rule = lambda _: Fate.PASS
        fleet.close()
    check_history(etcd)


def test_the_next_endpoint_is_asked_when_one_is_dead_or_mute(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes
) -> None:
    proxy.rule = lambda _: Fate.SWALLOW
    dead = f"http://127.0.0.1:{free_port()}"
    a = nodes.node("a", dead, proxy.url, etcd.url, timeouts=SOON)

    permitted(a.acquire("update"))
    assert a.release() is True


def test_an_endpoint_that_dies_between_look_and_swap_is_no_obstacle(
    etcd: EtcdServer, proxy: Proxy, nodes: Nodes
) -> None:
    a = nodes.node("a", proxy.url, etcd.url)
    proxy.rule = only_reads

    permitted(a.acquire("update"))

    assert len(etcd.history(DOCUMENT)) == 1


def test_a_paused_etcd_is_unavailable_and_a_resumed_one_goes_on(
    etcd: EtcdServer, nodes: Nodes
) -> None:
    a, b = nodes.node("a", timeouts=SOON), nodes.node("b", timeouts=SOON)
    permitted(a.acquire("update"))
    refused(b.acquire("update"))

    with etcd.paused():
        waiting = refused(b.acquire("update"))
        with pytest.raises(PermitUnavailableError, match="timed out"):
            a.release()

    assert waiting.code == "permit-unavailable"
    a.release()
    permitted(b.acquire("update"))
    check_history(etcd)


def test_a_web_server_that_is_no_etcd_is_quoted(tmp_path: Path) -> None:
    with running_web_server() as url:
        fleet = Nodes(tmp_path, url)
        with pytest.raises(PermitUnavailableError, match="<html>It works"):
            fleet.node("a").status()
        fleet.close()


def test_watches_that_break_make_growing_pauses_and_no_busy_loop(
    proxy: Proxy, nodes: Nodes
) -> None:
    pauses: list[float] = []
    b = nodes.node("b", pace=sleepless(pauses))
    permitted(nodes.node("a").acquire("update"))
    proxy.rule = lambda request: Fate.REFUSE if request.is_watch else Fate.PASS

    for _ in range(8):
        refused(b.acquire("update"))
        assert b.wait(60) is False

    pauses = pauses[1:]  # the first one came after joining the queue
    assert sum(request.is_watch for request in proxy.requests) == 8
    assert all(
        longest / 2 <= pause <= longest
        for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 30, 30, 30], strict=True)
    )


def test_an_etcd_that_is_away_makes_growing_pauses_until_it_is_back(
    proxy: Proxy, nodes: Nodes
) -> None:
    pauses: list[float] = []
    a = nodes.node("a", pace=sleepless(pauses))
    proxy.rule = lambda _: Fate.REFUSE

    for _ in range(3):
        assert refused(a.acquire("update")).code == "permit-unavailable"
        assert a.wait(60) is False
    proxy.rule = lambda _: Fate.PASS

    assert [0.5, 1, 2] <= pauses <= [1, 2, 4]
    permitted(a.acquire("update"))


def test_waiting_without_having_asked_sleeps(nodes: Nodes, proxy: Proxy) -> None:
    assert nodes.node("a").wait(0.2) is False
    assert proxy.requests == []


def test_a_waiter_keeps_its_place_while_etcd_restarts(etcd: EtcdServer, nodes: Nodes) -> None:
    a, b, c = (nodes.node(name) for name in "abc")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    refused(c.acquire("update"))

    etcd.kill()
    assert b.wait(1) is False
    etcd.start()

    assert refused(c.acquire("update")).ahead == 1
    assert refused(b.acquire("update")).ahead == 0
    assert etcd.names(QUEUE) == [QUEUE + "b", QUEUE + "c"]
