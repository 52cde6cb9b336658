"""update_engine's interface, as its clients call it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sim.bus_node import BusNode, bus_node
from tests.sim.message_bus import NOBODY
from updater.bus.library import open_bus
from updater.lifecycle import State

pytestmark = pytest.mark.e2e

NAME, OBJECT, INTERFACE = "com.coreos.update1", "/com/coreos/update1", "com.coreos.update1.Manager"
UPDATES = f"type='signal',interface='{INTERFACE}',member='StatusUpdate'"
IDLE, NEED_REBOOT = "UPDATE_STATUS_IDLE", "UPDATE_STATUS_UPDATED_NEED_REBOOT"


@pytest.fixture
def node() -> Iterator[BusNode]:
    with bus_node(image_size=2 * 1024 * 1024) as made:
        made.settings(reboot='"manual"')
        yield made


def status(node: BusNode) -> dict[str, Any]:
    done = node.bus.busctl("--json=short", "call", NAME, OBJECT, INTERFACE, "GetStatus")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def call(node: BusNode, member: str, user: int = 0) -> str:
    """Return what gdbus says of a call without arguments."""
    words = ("call", "-d", NAME, "-o", OBJECT, "-m", f"{INTERFACE}.{member}")
    done = node.bus.gdbus(*words, user=user)
    return done.stdout + done.stderr


def operations(bodies: list[list[Any]]) -> list[str]:
    """Return the operations in order, each once in a row."""
    return [name for name, _ in itertools.groupby(body[2] for body in bodies)]


def test_a_whole_update_as_update_engines_clients_see_it(node: BusNode) -> None:
    data = node.world.release("2.0.0", rollback_index=2)
    node.world.payloads.manners.pause_s = 0.05
    with node.hearing(UPDATES) as heard:
        node.start()
        node.wait_on_bus()
        assert status(node) == {"type": "xdssx", "data": [0, 0.0, IDLE, "0.0.0", 0]}
        assert call(node, "AttemptUpdate") == "()\n"
        assert status(node)["data"][2] != IDLE, "a client that polls now must not see the end"
        assert call(node, "AttemptUpdate") == "()\n", "also when it is busy"
        assert "org.freedesktop.DBus.GLib.ErrorError" in call(node, "ResetStatus")
        node.wait_for(lambda: status(node)["data"][2] == NEED_REBOOT, "a need to reboot")
        node.wait_for(lambda: heard.signals("StatusUpdate")[-1][2] == NEED_REBOOT, "its signal")
    told = heard.signals("StatusUpdate")
    assert operations(told) == [
        IDLE,
        "UPDATE_STATUS_CHECKING_FOR_UPDATE",
        "UPDATE_STATUS_DOWNLOADING",
        "UPDATE_STATUS_FINALIZING",
        NEED_REBOOT,
    ]
    shares = [body[1] for body in told if body[2] == "UPDATE_STATUS_DOWNLOADING"]
    assert shares == sorted(shares)
    assert 0 < max(shares) <= 1
    assert all(body[1] == 0 for body in told if body[2] != "UPDATE_STATUS_DOWNLOADING")
    checked, progress, _, version, size = status(node)["data"]
    assert (progress, version, size) == (0.0, "2.0.0", len(data))
    assert checked > 0
    assert node.log.count("job begins") == 1
    assert call(node, "AttemptUpdate") == "()\n", "also when it is armed already"
    assert node.log.count("job begins") == 1
    assert call(node, "ResetStatus") == "()\n"
    assert status(node)["data"][2:] == [IDLE, "0.0.0", 0]
    store = node.world.node().store
    assert store.read_state().state is State.IDLE
    assert store.read_denied() == {}, "the same version may be tried again"
    assert node.facts("Status")["target"] == "a", "and nothing unknown boots"
    assert call(node, "ResetStatus") == "()\n", "nothing to reset is fine"


def test_others_than_root_and_core_are_refused_by_the_bus(node: BusNode) -> None:
    node.start()
    node.wait_on_bus()
    for member in ("GetStatus", "AttemptUpdate", "ResetStatus"):
        assert "AccessDenied" in call(node, member, user=NOBODY)
    assert "job begins" not in node.log


def test_it_can_be_left_out(node: BusNode) -> None:
    node.settings("compatible = false\n")
    node.start()
    node.wait_on_bus()
    assert "ServiceUnknown" in call(node, "GetStatus")


def test_where_a_real_update_engine_is_our_own_interface_is_there_all_the_same(
    node: BusNode,
) -> None:
    async def scene() -> None:
        engine = await open_bus(node.bus.address)
        await engine.own(NAME)
        node.start()
        await asyncio.to_thread(node.wait_on_bus)
        await engine.close()

    asyncio.run(scene())
    assert "not update_engine, goes on without code=bus-name" in node.log
    assert node.property("State") == "idle"
