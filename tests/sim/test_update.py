"""The main job on one node: shipped engine, real files, real HTTP, modelled firmware."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot import KEEPERS
from partitions.slots import Slot
from tests.sim.lives import due_now, live
from tests.sim.world import World, run_until
from updater import shown
from updater.engine import Engine
from updater.lifecycle import State


@pytest.fixture(params=KEEPERS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, image_size=1024 * 1024, boot_control=request.param) as made:
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


def test_a_release_that_is_not_healthy_gets_its_tries_and_is_left(world: World) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
    world.write_settings()
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    live(world)
    node = world.node()
    assert (node.boot().slot, node.running().version) == (Slot.A, "1.0.0")
    assert list(node.store.read_denied()) == ["2.0.0"]
    assert not node.loader.read().slots[Slot.B].armed


def test_a_release_that_never_comes_up_is_left_when_its_tries_are_spent(world: World) -> None:
    run_until(Engine(node=world.boot()), "idle")
    drop_ins = world.config.with_name("node.toml.d")
    drop_ins.mkdir()
    tries = min(3, world.node().loader.max_tries)
    (drop_ins / "10.toml").write_text(f"[slots]\ntries = {tries}\n")
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "rebooting")
    booted = [world.boot().boot().slot for _ in range(tries + 1)]
    assert booted == [Slot.B] * tries + [Slot.A]
    live(world)
    assert list(world.node().store.read_denied()) == ["2.0.0"]
    assert world.node().running().version == "1.0.0"


def test_the_slots_are_shown_as_the_loader_sees_them(world: World) -> None:
    run_until(Engine(node=world.boot()), "idle")
    node = world.node()
    tries = min(7, node.loader.max_tries)
    node.loader.arm(Slot.B, tries=tries)
    a, b = shown.slots(node)
    assert (a["target"], a["armed"], a["tries_left"], a["confirmed"]) == (False, True, 0, True)
    assert (b["target"], b["armed"], b["tries_left"], b["confirmed"]) == (True, True, tries, False)
    head, *rows, loader = shown.slot_lines([a, b])
    assert loader.startswith(f"loader {world.boot_control}: ")
    assert head.split() == ["slot", "version", "booted", "target", "armed", "tries", "confirmed"]
    assert [row.split() for row in rows] == [
        ["a", "1.0.0", "yes", "-", "yes", "0", "yes"],
        ["b", "-", "-", "yes", "yes", str(tries), "-"],
    ]
