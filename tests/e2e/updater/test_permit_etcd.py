"""Permits in a real etcd: taking, waiting in turn, returning, steering."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.etcd import EtcdServer, etcd_programs, running_etcd
from tests.sim.permits import (
    ALL_GROUPS,
    DOCUMENT,
    GROUP,
    QUEUE,
    Nodes,
    check_history,
    holders,
    permitted,
    refused,
)
from updater.errors import StateError
from updater.permit.contract import WaitReason
from updater.permit.errors import PermitDocumentError, PermitMaxError, PermitNotHeldError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not etcd_programs(), reason="no etcd on this machine"),
]


@pytest.fixture(params=etcd_programs())
def etcd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", program=etcd_programs()[request.param]) as server:
        yield server


@pytest.fixture
def nodes(etcd: EtcdServer, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, etcd.url)
    yield made
    made.close()


def test_a_life_of_permits(etcd: EtcdServer, nodes: Nodes) -> None:
    a, b, c = (nodes.node(name) for name in "abc")
    _reading_creates_nothing(etcd, nodes)

    permit = permitted(a.acquire("update to 2.0.0", version="2.0.0"))
    assert (permit.group, permit.holder.host, permit.holder.version) == (
        "default",
        "host-a",
        "2.0.0",
    )
    assert json.loads(etcd.get(DOCUMENT) or b"")["max"] == 1

    waiting = refused(b.acquire("update"))
    assert waiting.reason is WaitReason.FULL
    assert "1 of 1 permits of group default are taken (host-a since 20" in waiting.sentence
    assert (waiting.max, waiting.ahead) == (1, 0)
    assert refused(c.acquire("update")).ahead == 1

    again = permitted(a.acquire("update to 3.0.0", version="3.0.0"))
    assert again.holder.since == permit.holder.since
    assert again.revision > permit.revision
    assert holders(etcd) == ["a"]

    status = c.status()
    assert [one.reason for one in status.holders] == ["update to 3.0.0"]
    assert [(one.id, one.host) for one in status.waiters] == [("b", "host-b"), ("c", "host-c")]
    assert (status.max, status.waiting) == (1, 2)

    assert a.release() is True
    assert a.release() is False
    assert refused(c.acquire("update")).reason is WaitReason.QUEUED
    permitted(b.acquire("update"))
    assert etcd.names(QUEUE) == [QUEUE + "c"]

    change = c.set_max(2)
    assert (change.before, change.after, change.held) == (1, 2, 1)
    permitted(c.acquire("update"))
    assert etcd.names(QUEUE) == []

    assert a.return_for("b").host == "host-b"
    with pytest.raises(PermitNotHeldError, match=r"'b' holds no permit .* held by host-c"):
        a.return_for("b")
    assert c.release() is True
    assert check_history(etcd)[-1] == []


def _reading_creates_nothing(etcd: EtcdServer, nodes: Nodes) -> None:
    reader = nodes.node("reader")
    assert reader.status().max is None
    assert reader.release() is False
    with pytest.raises(PermitNotHeldError, match="held by nobody"):
        reader.return_for("b")
    assert etcd.names(GROUP) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("permits") / "etcd") as running:
        yield running


@pytest.fixture
def one(server: EtcdServer) -> EtcdServer:
    server.begin_anew(ALL_GROUPS)
    return server


@pytest.fixture
def fleet(one: EtcdServer, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, one.url)
    yield made
    made.close()


def test_the_document_rules_over_the_setting_once_it_exists(fleet: Nodes) -> None:
    fleet.node("operator").set_max(1)

    permitted(fleet.node("a", initial_max=5).acquire("update"))

    assert refused(fleet.node("b", initial_max=5).acquire("update")).max == 1


def test_groups_do_not_share_permits(fleet: Nodes) -> None:
    permitted(fleet.node("a", group="workers").acquire("update"))
    permitted(fleet.node("b", group="routers").acquire("update"))

    assert fleet.node("c", group="router").status().max is None


def test_max_0_closes_the_group_and_raising_it_wakes_who_waits(fleet: Nodes) -> None:
    a, operator = fleet.node("a"), fleet.node("operator")
    operator.set_max(0)
    waiting = refused(a.acquire("update"))
    assert (waiting.reason, waiting.code) == (WaitReason.CLOSED, "permit-closed")

    opening = threading.Timer(0.5, operator.set_max, (1,))
    opening.start()
    woken = a.wait(30)
    opening.join()

    assert woken
    permitted(a.acquire("update"))


def test_a_first_max_of_0_creates_no_group(one: EtcdServer, fleet: Nodes) -> None:
    a = fleet.node("a", initial_max=0)

    assert refused(a.acquire("update")).reason is WaitReason.CLOSED
    assert one.get(DOCUMENT) is None
    assert a.release() is False
    assert one.names(GROUP) == []


def test_lowering_max_below_the_holders_lets_nobody_in_until_there_is_room(
    one: EtcdServer, fleet: Nodes
) -> None:
    a, b, c = (fleet.node(name, initial_max=2) for name in "abc")
    permitted(a.acquire("update"))
    permitted(b.acquire("update"))
    assert c.set_max(1).held == 2

    assert refused(c.acquire("update")).reason is WaitReason.FULL
    a.release()
    assert refused(c.acquire("update")).reason is WaitReason.FULL
    b.release()
    permitted(c.acquire("update"))
    check_history(one)


@pytest.mark.parametrize("places", [-1, 1001])
def test_a_max_out_of_range_changes_nothing(one: EtcdServer, fleet: Nodes, places: int) -> None:
    with pytest.raises(PermitMaxError, match=str(places)):
        fleet.node("operator").set_max(places)

    assert one.names(GROUP) == []


@pytest.mark.parametrize(
    "value",
    [b"", b"not JSON", b'{"schema":"bascule.permit/2","max":1,"holders":[]}', b"x" * 1_200_000],
    ids=["empty", "text", "schema", "long"],
)
def test_a_document_that_is_none_of_ours_is_refused_and_never_overwritten(
    one: EtcdServer, fleet: Nodes, value: bytes
) -> None:
    one.put(DOCUMENT, value)
    a = fleet.node("a")

    for verb in (
        lambda: a.acquire("update"),
        a.release,
        a.status,
        lambda: a.set_max(3),
        lambda: a.return_for("b"),
    ):
        with pytest.raises(PermitDocumentError, match=DOCUMENT):
            verb()

    assert one.get(DOCUMENT) == value


def test_fields_of_a_later_version_survive_our_writes(one: EtcdServer, fleet: Nodes) -> None:
    one.put(
        DOCUMENT,
        b'{"schema":"bascule.permit/1","max":2,"budget":{"failed":1},"holders":[{"id":"b",'
        b'"host":"B","since":"2026-11-23T12:00:00Z","reason":"r","until":"2027"}]}',
    )
    a = fleet.node("a")
    permitted(a.acquire("update"))
    a.release()

    document = json.loads(one.get(DOCUMENT) or b"")
    assert document["budget"] == {"failed": 1}
    assert document["holders"][0]["until"] == "2027"


def test_a_permit_is_not_granted_when_the_cluster_cannot_be_remembered(
    one: EtcdServer, fleet: Nodes
) -> None:
    a = fleet.node("a")
    (fleet.folder / "a.json").mkdir()

    with pytest.raises(StateError, match=r"a\.json cannot be written"):
        a.acquire("update")

    (fleet.folder / "a.json").rmdir()
    assert a.release() is True
    assert holders(one) == []
