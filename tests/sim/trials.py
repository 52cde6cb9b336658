"""A node before, in and after a trial: what several test modules begin with."""

from __future__ import annotations

from images.release import tuf_payload_path
from partitions.boot.control import SlotState
from tests.sim.lives import due_now
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, run_until
from updater.engine import Engine
from updater.node import Node
from updater.state import NodeState

CONFIRMED = SlotState(armed=True, tries_left=0, confirmed=True)
DISARMED = SlotState(armed=False, tries_left=0, confirmed=False)
BOTH = {
    version: [tuf_payload_path(PRODUCT, BOARD, version, "full")] for version in ("2.0.0", "3.0.0")
}


def sick_of(version: str) -> list[str]:
    """Return a health check that fails in one version."""
    return ["sh", "-c", f"echo {version} is sick; test $BASCULE_VERSION != {version}"]


def install(world: World, version: str = "2.0.0", *, rollback_index: int = 2) -> Node:
    """Release a version and let the node install it, up to the reboot; returns the node."""
    world.release(version, rollback_index=rollback_index)
    due_now(world)
    node = world.node()
    run_until(Engine(node=node), "rebooting")
    assert world.slot_bytes(node.boot().slot.other) == world.image_bytes(version)
    return node


def on_trial(world: World, version: str = "2.0.0", *, rollback_index: int = 2) -> Node:
    """Install a version and boot it; returns the node, before its first step in that boot."""
    slot = world.node().boot().slot
    install(world, version, rollback_index=rollback_index)
    node = world.boot()
    assert node.boot().slot is slot.other
    return node


def armed(
    world: World, version: str = "2.0.0", *, rollback_index: int = 2, **channel: object
) -> Node:
    """Release a version and let a node that reboots by hand only install it."""
    world.write_settings(reboot='"manual"')
    world.release(version, rollback_index=rollback_index, **channel)
    due_now(world)
    node = world.node()
    run_until(Engine(node=node), "reboot-manual")
    return node


def memory(node: Node) -> NodeState:
    """Return what the node remembers, once it found out where it stands."""
    with node.locked() as found:
        return found
