"""The main job on one node: shipped engine, real files, real HTTP, modelled firmware."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.slots import Slot
from tests.sim.world import World, run_until
from updater.engine import Engine
from updater.lifecycle import State


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def test_a_release_is_installed_booted_and_confirmed(world: World) -> None:
    node = world.boot()
    run_until(Engine(node=node), "idle")
    world.release("2.0.0", rollback_index=2)
    node.keep(node.store.read_state(), next_check=None)

    run_until(Engine(node=node), "rebooting")
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert world.slot_bytes(Slot.A) == world.image_bytes("1.0.0")

    node = world.boot()
    assert node.boot().slot is Slot.B
    run_until(Engine(node=node), "idle")
    assert node.loader.read().slots[Slot.B].confirmed
    assert node.store.read_floor() == 2
    memory = node.store.read_state()
    assert (memory.state, memory.update, memory.permit) == (State.IDLE, None, "none")
