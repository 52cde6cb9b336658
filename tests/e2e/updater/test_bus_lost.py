"""A bus that is not there, comes late, or goes away: updating never depends on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.sim.bus_node import BusNode, bus_node
from updater.bus import service
from updater.bus.service import BusService
from updater.bus.session import Place
from updater.lifecycle import State

pytestmark = pytest.mark.e2e


@pytest.fixture
def node() -> Iterator[BusNode]:
    with bus_node(image_size=8 * 1024 * 1024) as made:
        made.settings(reboot='"manual"')
        yield made


def test_the_service_ends_when_the_bus_goes_and_its_install_resumes(node: BusNode) -> None:
    payload = node.world.release("2.0.0", rollback_index=2)
    node.world.payloads.manners.pause_s = 0.1
    node.start()
    node.wait_on_bus()
    assert node.call("Update", "a{sv}", "0").returncode == 0
    node.wait_for(lambda: node.world.payloads.sent > 3 * 1024 * 1024, "three MiB")
    node.bus.stop()
    assert node.wait() == 1
    assert "code: bus-lost" in node.log
    memory = node.world.node().store.read_state()
    assert memory.state is State.INSTALLING
    journal = node.world.node().store.read_journal()
    assert journal is not None
    assert journal.next_operation > 0
    node.world.payloads.manners.pause_s = 0
    node.world.payloads.sent = 0
    node.bus.start()
    node.start()
    node.wait_for(lambda: node.property("State") == "armed", "the rest of the install")
    assert 0 < node.world.payloads.sent < len(payload) - 1024 * 1024, "it asked for all of it again"


def test_a_service_without_a_bus_updates_and_warns_once(node: BusNode) -> None:
    node.bus.stop()
    node.world.release("2.0.0", rollback_index=2)
    node.settings(reboot='"manual"', first_check_secs="0.001")
    node.start()

    def armed() -> bool:
        return node.world.node().store.read_state().state is State.ARMED

    node.wait_for(armed, "an update without a bus")
    assert node.log.count("code=bus-unreachable") == 1
    assert node.stop() == 0


def test_a_bus_that_comes_late_is_found(node: BusNode) -> None:
    node.bus.stop()
    ours = node.world.node()
    place = Place(node=ours, command=["false"], compatible=True, woken=lambda: None)
    there = BusService(place, node.bus.address, retry_secs=0.05)
    beats = threading.Event()
    there.start(beats.set)
    try:
        node.bus.start()
        node.wait_on_bus()
        assert beats.is_set()
    finally:
        there.close()
    assert there.lost is None
    assert not ours.stop.is_set()


def test_a_bus_that_refuses_the_name_is_gone_on_without(
    node: BusNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_SECS", 3600)
    node.start()
    node.wait_on_bus()
    place = Place(node=node.world.node(), command=["false"], compatible=False, woken=lambda: None)
    second = BusService(place, node.bus.address)
    second.start()
    node.wait_for(lambda: "code=bus-name" in caplog.text, "the refusal")
    second.close()
    assert second.lost is None
