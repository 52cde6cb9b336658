"""What tests do to a `World`'s node besides taking steps: make time pass, begin a new process."""

from __future__ import annotations

import os

import msgspec
import pytest

from tests.sim.world import World
from updater import node as node_module
from updater.agent import Wait
from updater.engine import Engine
from updater.lifecycle import State
from updater.machine_model import BOOT_FILE, BootRecord
from updater.node import Node
from updater.rooms import ROOM_ERRORS
from updater.state import NodeState

FAR_AWAY_SECS = 10_000.0  # beyond every deadline of the settings


def memory_of(world: World) -> NodeState:
    """Return what is remembered on disk."""
    return world.node().store.read_state()


def due_now(world: World) -> None:
    """Make the next check due."""
    node = world.node()
    node.keep(node.store.read_state(), next_check=None, checks_failed=0)


def let_time_pass(world: World, seconds: float = FAR_AWAY_SECS) -> None:
    """Make the present boot so much older."""
    path = world.folder / "run" / BOOT_FILE
    record = msgspec.json.decode(path.read_bytes(), type=BootRecord)
    older = msgspec.structs.replace(record, began=record.began - seconds)
    path.write_bytes(msgspec.json.encode(older))


def new_process(world: World, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Return the node as another process of the same boot sees it."""
    monkeypatch.setattr(node_module, "_START", os.urandom(8).hex())
    return world.node()


def live(world: World, *, steps: int = 60) -> list[str]:
    """Let the node live until it rests in IDLE, through boots and refusals; returns its codes.

    Raises:
        AssertionError: it never rests.
    """
    engine = Engine(node=world.node())
    codes: list[str] = []
    for _ in range(steps):
        try:
            wait = engine.step()
        except ROOM_ERRORS as error:
            codes.append(error.code)
            continue
        if not isinstance(wait, Wait):
            continue
        codes.append(wait.code)
        if wait.code == "idle":
            return codes
        if wait.code == "rebooting":
            engine = Engine(node=world.boot())
        elif wait.code == "health-pending":
            let_time_pass(world)
            engine = Engine(node=world.node(), last_verdict=engine.last_verdict)
    raise AssertionError(f"the node never rests: {codes}")


def assert_rests_well(world: World, node: Node, where: str) -> str:
    """Check what must be true at every end; returns the version that runs."""
    memory = memory_of(world)
    loader = node.loader.read()
    booted = node.boot().slot
    version = node.running().version
    assert (memory.state, memory.update, memory.permit) == (State.IDLE, None, "none"), where
    assert loader.target is booted, where
    assert loader.slots[booted].confirmed, where
    assert world.slot_bytes(booted) == world.image_bytes(version), where
    other = loader.slots[booted.other]
    assert node.store.read_marker() is None, where  # the guard has nothing to do
    if other.armed:  # then it must be whole, too
        held = node.machine.image_facts(booted.other).version
        assert world.slot_bytes(booted.other) == world.image_bytes(held), where
    return version
