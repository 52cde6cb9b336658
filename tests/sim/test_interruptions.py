"""Cuts and stops at awkward moments: what was half done is finished, taken back, or tried again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.errors import BootControlError
from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, live, memory_of
from tests.sim.world import World, run_until
from updater import rebooting
from updater.agent import Wait
from updater.daemon import Daemon
from updater.engine import Engine
from updater.lifecycle import State
from updater.machine_model import STOPPING_FILE

LIMIT_SECS = 60.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        made.boot()
        yield made


def arm(world: World, rollback_index: int = 2) -> None:
    """Bring the node to ARMED with 2.0.0 where reboots are manual."""
    world.write_settings(reboot='"manual"')
    world.release("2.0.0", rollback_index=rollback_index)
    due_now(world)
    run_until(Engine(node=world.node()), "reboot-manual")


def to_trial(world: World, rollback_index: int = 2) -> Engine:
    """Bring the node into the trial of 2.0.0; returns the engine of that boot."""
    arm(world, rollback_index)
    world.write_settings()
    run_until(Engine(node=world.node()), "rebooting")
    node = world.boot()
    with node.locked() as memory:
        assert memory.state is State.TRIAL
    return Engine(node=node)


def test_a_confirmation_cut_after_the_loader_was_told_is_finished_however_late(
    world: World,
) -> None:
    engine = to_trial(world)
    engine.node.loader.confirm(Slot.B)
    let_time_pass(world)
    world.health = ["false"]  # it was healthy when it was confirmed; that stands
    world.write_settings()
    assert live(world)[-1] == "idle"
    assert world.node().boot().slot is Slot.B
    assert world.node().store.read_denied() == {}
    assert world.node().store.read_floor() == 2


def test_a_clean_shutdown_during_a_trial_does_not_cost_the_only_try(world: World) -> None:
    engine = to_trial(world)
    assert engine.node.loader.read().slots[Slot.B].tries_left == 0
    (world.folder / "run" / STOPPING_FILE).touch()
    engine.node.stop.set()
    Daemon(engine.node).run()

    assert world.boot().boot().slot is Slot.B
    assert live(world)[-1] == "idle"
    assert world.node().running().version == "2.0.0"


def test_clean_shutdowns_do_not_keep_a_trial_up_for_ever(world: World) -> None:
    engine = to_trial(world)
    boots = 0
    while world.node().boot().slot is Slot.B:
        (world.folder / "run" / STOPPING_FILE).touch()
        node = world.node()
        node.stop.set()
        Daemon(node).run()
        world.boot()
        boots += 1
    assert boots == rebooting.TRIES_GIVEN_BACK_MAX + 1
    assert engine.node.running().version == "1.0.0"


def test_a_stop_of_the_service_alone_gives_no_try_back(world: World) -> None:
    engine = to_trial(world)
    engine.node.stop.set()
    Daemon(engine.node).run()
    assert engine.node.loader.read().slots[Slot.B].tries_left == 0


def test_what_is_armed_and_then_withdrawn_is_taken_back(world: World) -> None:
    arm(world)
    world.repository.promote("1.0.0", withdrawn=("2.0.0",))
    due_now(world)
    with pytest.raises(Exception, match="allows it no longer"):
        Engine(node=world.node()).step()
    memory = memory_of(world)
    assert (memory.state, memory.update) == (State.IDLE, None)
    assert memory.last_check_code == "armed-withdrawn"
    state = world.node().loader.read()
    assert state.target is Slot.A
    assert not state.slots[Slot.B].armed
    assert world.node().store.read_denied() == {}, "a withdrawal is no failure of this node"


def test_a_stopped_rollout_closes_a_gate_of_what_is_armed(world: World) -> None:
    arm(world)
    world.write_settings()
    node = world.node()
    changes = {"last_check_code": "rollout-stopped", "last_check_sentence": "it did not hold"}
    node.keep(memory_of(world), **changes)
    wait = Engine(node=node).step()
    assert isinstance(wait, Wait)
    assert wait.code == "rollout-stopped"


def test_a_rollback_cut_before_the_loader_was_told_is_not_ordered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_trial(world, rollback_index=1)
    live(world)
    node = world.node()
    monkeypatch.setattr(type(node.loader), "arm", _cut)
    with node.locked() as memory, pytest.raises(BootControlError):
        rebooting.roll_back(node, memory)
    monkeypatch.undo()
    assert memory_of(world).state is State.ARMED

    assert world.boot().boot().slot is Slot.B
    live(world)
    assert memory_of(world).state is State.IDLE
    assert "1.0.0" not in world.node().store.read_denied(), "1.0.0 was never tried"


def _cut(*_arguments: object, **_named: object) -> None:
    raise BootControlError("the power failed here")


def test_a_reboot_that_does_not_come_gives_the_permit_back_and_is_said(world: World) -> None:
    arm(world)
    world.write_settings()
    engine = Engine(node=world.node())
    run_until(engine, "rebooting")
    let_time_pass(world, 400)
    run_until(engine, "reboot-overdue")
    memory = memory_of(world)
    assert memory.state is State.ARMED
    assert memory.last_failure is not None
    assert memory.last_failure.code == "reboot-overdue"
    let_time_pass(world, 1000)
    run_until(engine, "rebooting")


def test_a_node_that_cannot_return_its_permit_still_checks_and_installs(world: World) -> None:
    """The service decides, its worker acts: it must not decide anew without what it knows."""
    nowhere = '\n[permit]\nkind = "etcd"\nendpoints = ["http://127.0.0.1:9"]\n'
    world.write_settings(extra=nowhere, reboot='"manual"')
    world.release("2.0.0", rollback_index=2)
    command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "daemon"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_SECS
        while memory_of(world).state is not State.ARMED:
            assert time.monotonic() < deadline, memory_of(world)
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait()
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
