"""The queue: first come, first served; the dead fall out; a change wakes one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sim.etcd import EtcdServer, etcd_programs, running_etcd
from tests.sim.permits import (
    ALL_GROUPS,
    QUEUE,
    SHORT_LEASE,
    Nodes,
    holders,
    permitted,
    refused,
)
from updater.permit.contract import Permit, WaitReason
from updater.permit.keeper import EtcdPermits
from updater.permit.queue import LeaseTimes

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not etcd_programs(), reason="no etcd on this machine"),
]
CROWD = 100
PATIENCE_S = 120.0  # for a machine that does much else


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("permits") / "etcd") as running:
        yield running


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.begin_anew(ALL_GROUPS)
    return server


@pytest.fixture
def nodes(etcd: EtcdServer, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, etcd.url)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail when it does not come true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_who_came_first_is_served_first(etcd: EtcdServer, nodes: Nodes) -> None:
    permitted(nodes.node("first").acquire("update"))
    names = ["m", "z", "a", "k"]
    keepers = {name: nodes.node(name) for name in names}
    for name in names:
        refused(keepers[name].acquire("update"))

    served: list[str] = []
    for _ in names:
        nodes.node("operator").return_for(holders(etcd)[0])
        waiting = [name for name in reversed(names) if name not in served]
        outcomes = {name: keepers[name].acquire("update") for name in waiting}
        served += [name for name, outcome in outcomes.items() if isinstance(outcome, Permit)]

    assert served == names


def test_several_free_places_go_to_as_many_first_waiters(nodes: Nodes) -> None:
    operator = nodes.node("operator")
    operator.set_max(0)
    keepers = [nodes.node(f"n{number}") for number in range(4)]
    for keeper in keepers:
        refused(keeper.acquire("update"))

    operator.set_max(2)

    assert refused(keepers[2].acquire("update")).reason is WaitReason.QUEUED
    permitted(keepers[1].acquire("update"))
    permitted(keepers[0].acquire("update"))
    assert refused(keepers[2].acquire("update")).reason is WaitReason.FULL


def test_a_newcomer_does_not_overtake_who_waits(nodes: Nodes) -> None:
    a, b, late = nodes.node("a"), nodes.node("b"), nodes.node("late")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    a.release()

    waiting = refused(late.acquire("update"))

    assert waiting.reason is WaitReason.QUEUED
    assert waiting.sentence.endswith("are taken (nobody); 1 wait before this node")


def test_a_released_place_wakes_the_next_waiter_at_once(nodes: Nodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))

    releasing = threading.Timer(0.3, a.release)
    releasing.start()
    woken = b.wait(PATIENCE_S)
    releasing.join()

    assert woken
    permitted(b.acquire("update"))


def test_a_change_between_the_question_and_the_wait_is_not_missed(nodes: Nodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    a.release()

    assert b.wait(PATIENCE_S) is True


def test_a_wait_without_news_ends_in_time_and_a_second_one_asks_nothing(nodes: Nodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))

    assert b.wait(0.2) is False
    assert b.wait(0.0) is False


def test_giving_up_leaves_the_queue(etcd: EtcdServer, nodes: Nodes) -> None:
    a, b, c = (nodes.node(name) for name in "abc")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    refused(c.acquire("update"))

    assert b.release() is False
    assert etcd.names(QUEUE) == [QUEUE + "c"]
    c.close()
    assert etcd.names(QUEUE) == []


def test_a_process_that_starts_again_keeps_its_place(nodes: Nodes) -> None:
    a, b, c = (nodes.node(name) for name in "abc")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    refused(c.acquire("update"))

    reborn = nodes.node("b")

    assert refused(reborn.acquire("update")).ahead == 0
    assert refused(c.acquire("update")).ahead == 1


def test_a_command_beside_the_daemon_does_not_lose_the_daemons_place(nodes: Nodes) -> None:
    a, daemon, c = (nodes.node(name) for name in ("a", "b", "c"))
    permitted(a.acquire("update"))
    refused(daemon.acquire("update"))
    refused(c.acquire("update"))

    command = nodes.node("b")
    assert refused(command.acquire("now, please")).ahead == 0
    command.close()

    assert refused(daemon.acquire("update")).ahead == 0
    a.release()
    permitted(nodes.node("b").acquire("now, please"))
    assert daemon.wait(PATIENCE_S) is True
    permitted(daemon.acquire("update"))


def test_events_that_were_compacted_away_are_no_silence(etcd: EtcdServer, nodes: Nodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    permitted(a.acquire("update"))
    refused(b.acquire("update"))
    a.release()
    for _ in range(3):
        etcd.put("/test/noise", b"")
    etcd.compact()

    assert b.wait(PATIENCE_S) is True
    permitted(b.acquire("update"))


def test_a_waiter_keeps_its_lease_alive_while_it_waits(etcd: EtcdServer, nodes: Nodes) -> None:
    permitted(nodes.node("a").acquire("update"))
    b = nodes.node("b", lease_times=LeaseTimes(ttl_s=60, keep_alive_s=0.3))
    refused(b.acquire("update"))
    renewals = 'grpc_server_handled_total{grpc_code="OK",grpc_method="LeaseKeepAlive"'
    before = etcd.metric(renewals)

    assert b.wait(2) is False

    assert etcd.metric(renewals) - before >= 2
    assert [one.value is None for one in etcd.history(QUEUE + "b")] == [False]


def test_a_waiter_that_slept_too_long_queues_again_behind_the_others(
    etcd: EtcdServer, nodes: Nodes
) -> None:
    permitted(nodes.node("a").acquire("update"))
    sleeper, c = nodes.node("sleeper", lease_times=SHORT_LEASE), nodes.node("c")
    refused(sleeper.acquire("update"))
    refused(c.acquire("update"))
    until(lambda: etcd.names(QUEUE) == [QUEUE + "c"])

    assert sleeper.wait(PATIENCE_S) is True
    assert refused(sleeper.acquire("update")).ahead == 1


def test_a_killed_waiter_leaves_the_queue_and_the_next_is_woken(
    etcd: EtcdServer, nodes: Nodes
) -> None:
    a, last = nodes.node("a"), nodes.node("last")
    permitted(a.acquire("update"))
    command = [sys.executable, "-m", "tests.sim.permit_node", "--ttl=4"]
    arguments = [f"--endpoint={etcd.url}", "--id=victim", f"--folder={nodes.folder}"]
    victim = subprocess.Popen(command + arguments, stdout=subprocess.DEVNULL)
    until(lambda: etcd.names(QUEUE) == [QUEUE + "victim"])
    assert refused(last.acquire("update")).ahead == 1

    victim.kill()
    victim.wait()

    assert last.wait(PATIENCE_S) is True
    assert refused(last.acquire("update")).ahead == 0


def test_a_stranger_in_the_queue_stops_nobody_from_seeing_it(
    etcd: EtcdServer, nodes: Nodes
) -> None:
    etcd.put(QUEUE + "stranger", b"\xff\x00 not JSON")
    permitted(nodes.node("a", initial_max=2).acquire("update"))

    assert refused(nodes.node("b").acquire("update")).ahead == 1
    assert [one.id for one in nodes.node("c").status().waiters] == ["stranger", "b"]


class Crowd:
    """Many nodes of one process, each waiting in a thread of its own."""

    def __init__(self, nodes: Nodes) -> None:
        self.keepers = [nodes.node(f"n{number:03d}") for number in range(CROWD)]
        self.woken: list[EtcdPermits] = []
        self.granted: list[EtcdPermits] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def join_queue(self) -> None:
        for keeper in self.keepers:
            refused(keeper.acquire("update"))
            self._threads.append(threading.Thread(target=self._wait, args=(keeper,)))

    def begin_waiting(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self, etcd: EtcdServer) -> None:
        self._over.set()
        etcd.begin_anew(ALL_GROUPS)  # wakes all
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _wait(self, keeper: EtcdPermits) -> None:
        while not self._over.is_set():
            if keeper.wait(PATIENCE_S) and not self._over.is_set():
                self.woken.append(keeper)
            if isinstance(keeper.acquire("update"), Permit):
                self.granted.append(keeper)
                return


def test_a_permit_that_comes_free_wakes_two_of_a_hundred(etcd: EtcdServer, nodes: Nodes) -> None:
    """The first takes it; the second, whose predecessor is gone, watches the document now."""
    holder = nodes.node("holder")
    permitted(holder.acquire("update"))
    crowd = Crowd(nodes)
    crowd.join_queue()
    crowd.begin_waiting()
    watchers = "etcd_debugging_mvcc_watcher_total"
    until(lambda: etcd.metric(watchers) >= CROWD)
    transactions = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Txn"'
    before = etcd.metric(transactions)

    holder.release()
    until(lambda: len(crowd.woken) >= 2 and len(crowd.granted) >= 1)
    until(lambda: etcd.metric(transactions) - before >= 5)
    asked = etcd.metric(transactions) - before
    woken, granted = list(crowd.woken), list(crowd.granted)
    crowd.end(etcd)

    assert granted == crowd.keepers[:1]
    assert woken == crowd.keepers[:2]
    assert asked <= 6, "release: look, swap; the first: look, swap; the second: look"
