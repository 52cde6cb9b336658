"""A machine that somebody asked to stay up: reboots wait, a trial that fails does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, memory_of
from tests.sim.world import World, run_until
from updater import verbs
from updater.engine import Engine
from updater.lifecycle import State
from updater.machine import Inhibitor
from updater.machine_model import ModelMachine
from updater.why import explain

BACKUP = Inhibitor(
    what=frozenset({"shutdown"}), who="Backup", why="nightly", mode="block", uid=0, pid=812
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Inhibitor]:
    """What is inhibited on the machine, for tests to change."""
    found = [BACKUP]

    def inhibitors(_: ModelMachine) -> Sequence[Inhibitor]:
        return found

    monkeypatch.setattr(ModelMachine, "inhibitors", inhibitors)
    return found


def release(world: World) -> Engine:
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    return Engine(node=world.node())


def test_a_reboot_waits_until_nobody_inhibits_it(world: World, held: list[Inhibitor]) -> None:
    engine = release(world)
    run_until(engine, "inhibited")
    found = memory_of(world)
    assert (found.state, found.permit) == (State.ARMED, "none")
    assert found.waiting_sentence.startswith("Backup (process 812 of user 0)")
    held.clear()
    run_until(engine, "rebooting")


def test_a_person_may_reboot_all_the_same(world: World, held: list[Inhibitor]) -> None:
    assert held
    engine = release(world)
    run_until(engine, "inhibited")
    facts = verbs.perform(world.node(), "reboot", {}, by="root")
    assert facts["waiting"]["code"] == "inhibited"
    facts = verbs.perform(world.node(), "reboot", {"now": True}, by="root")
    assert facts["waiting"] is None
    assert memory_of(world).state is State.REBOOTING


def test_a_trial_that_fails_goes_back_all_the_same(world: World, held: list[Inhibitor]) -> None:
    held.clear()
    world.health = ["false"]
    world.write_settings()
    run_until(release(world), "rebooting")
    held.append(BACKUP)
    engine = Engine(node=world.boot())
    run_until(engine, "health-pending")
    let_time_pass(world)
    run_until(engine, "rebooting")
    assert world.boot().boot().slot is Slot.A


def test_logind_is_asked_only_when_nothing_else_keeps_the_node_from_rebooting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that waits for days asks nobody every few seconds."""
    asked: list[int] = []

    def inhibitors(_: ModelMachine) -> Sequence[Inhibitor]:
        asked.append(1)
        return []

    monkeypatch.setattr(ModelMachine, "inhibitors", inhibitors)
    world.write_settings(reboot='"manual"')
    run_until(release(world), "reboot-manual")
    assert asked == []


def test_why_names_who_inhibits_though_another_gate_is_closed_too(
    world: World, held: list[Inhibitor]
) -> None:
    assert held
    world.write_settings(reboot='"manual"')
    run_until(release(world), "reboot-manual")
    rows = {row["code"]: row for row in explain(world.node())["conditions"]}
    assert not rows["reboot-manual"]["open"]
    assert not rows["inhibited"]["open"]
