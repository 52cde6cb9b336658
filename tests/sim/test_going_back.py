"""What a person takes back: the version that runs, one that is armed, one being installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot.gptprio import GptPriorities
from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, live, memory_of, new_process
from tests.sim.payload_server import Manners
from tests.sim.trials import CONFIRMED, DISARMED, armed, memory, on_trial, sick_of
from tests.sim.world import World, run_until
from updater import checking, rebooting, updating
from updater.checking import withdraw
from updater.engine import Engine
from updater.errors import IllegalTransitionError
from updater.lifecycle import State
from updater.node import Node
from updater.pipeline import PayloadDigestError
from updater.proof import ReadBackError
from updater.rebooting import (
    RollbackRefusedError,
)
from updater.state import NodeState
from updater.trust.errors import VersionDeniedError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=1024 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


class TestRollingBack:
    def on_2(self, world: World) -> Node:
        """Return a node that runs 2.0.0 in slot B, of the same rollback index as 1.0.0 in A."""
        on_trial(world, rollback_index=1)
        world.write_settings(reboot='"manual"')
        live(world)
        node = world.node()
        assert node.running().version == "2.0.0"
        return node

    def roll_back(self, node: Node) -> NodeState:
        with node.locked() as found:
            return rebooting.roll_back(node, found)

    def test_starts_the_other_slot_on_trial_and_refuses_the_version_left(
        self, world: World
    ) -> None:
        node = self.on_2(world)
        found = self.roll_back(node)
        assert found.state is State.ARMED
        assert node.loader.read().target is Slot.A
        node = world.boot()
        assert memory(node).state is State.TRIAL
        run_until(Engine(node=node), "idle")
        assert node.running().version == "1.0.0"
        assert node.loader.read().slots[Slot.A] == CONFIRMED
        assert [why.code for why in node.store.read_denied().values()] == ["rolled-back"]
        due_now(world)
        with pytest.raises(VersionDeniedError):
            Engine(node=world.node()).step()

    def test_is_a_trial_that_may_fail_too(self, world: World) -> None:
        world.health = sick_of("1.0.0")
        node = self.on_2(world)
        world.write_settings(reboot='"manual"')
        self.roll_back(node)
        engine = Engine(node=world.boot())
        run_until(engine, "health-pending")
        let_time_pass(world)
        run_until(engine, "rebooting", steps=2)
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.IDLE

    def test_can_be_taken_back_and_ordered_again(self, world: World) -> None:
        node = self.on_2(world)
        before = node.loader.read()
        self.roll_back(node)
        found = self.roll_back(node)
        assert (found.state, found.update) == (State.IDLE, None)
        after = node.loader.read()
        assert (after.target, after.slots) == (before.target, before.slots)
        assert node.store.read_denied() == {}
        assert self.roll_back(node).state is State.ARMED

    def test_is_not_overtaken_by_a_check(self, world: World) -> None:
        """A person's order comes before what a channel says meanwhile."""
        node = self.on_2(world)
        self.roll_back(node)
        world.release("3.0.0", rollback_index=3)
        due_now(world)
        run_until(Engine(node=node), "reboot-manual")
        found = memory_of(world)
        assert found.update is not None
        assert (found.update.version, found.update.rollback) == ("1.0.0", True)

    def test_below_the_floor_is_refused(self, world: World) -> None:
        on_trial(world, rollback_index=2)
        live(world)
        node = world.node()
        before = node.loader.read()
        with pytest.raises(RollbackRefusedError, match="rollback index 1, this node accepts 2"):
            self.roll_back(node)
        assert node.loader.read() == before
        assert memory_of(world).state is State.IDLE
        assert node.store.read_denied() == {}

    def test_to_a_slot_that_never_held_is_refused(self, world: World) -> None:
        node = world.node()
        with pytest.raises(RollbackRefusedError, match="slot b holds no system that was confirmed"):
            self.roll_back(node)
        assert node.loader.read().target is Slot.A

    def test_to_a_slot_that_was_half_written_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though the loader calls it confirmed: firmware may put every entry into its order."""
        node = self.on_2(world)
        world.release("3.0.0", rollback_index=2)
        due_now(world)

        def lost(*_: object, **__: object) -> None:
            raise ReadBackError("the disk loses what it is given")

        monkeypatch.setattr(updating, "verify_slot", lost)
        with pytest.raises(ReadBackError):
            Engine(node=node).step()
        somebody = GptPriorities(world.disk, node.layout)
        somebody.confirm(Slot.A)
        somebody.confirm(Slot.B)
        for again in (node, new_process(world, monkeypatch), world.boot()):
            before = again.loader.read()
            with pytest.raises(RollbackRefusedError, match="slot a was begun and not verified"):
                self.roll_back(again)
            assert (again.loader.read(), memory_of(world).state) == (before, State.IDLE)

    def test_to_a_slot_that_was_written_whole_after_half_of_it_is_none_of_that(
        self, world: World
    ) -> None:
        node = self.on_2(world)
        data = world.release("3.0.0", rollback_index=1)
        world.payloads.manners = Manners(flip_at=len(data) - 20)
        due_now(world)
        with pytest.raises(PayloadDigestError):
            Engine(node=node).step()
        assert memory_of(world).unverified is not None
        world.payloads.manners = Manners()
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
        assert memory_of(world).unverified is None
        world.boot()
        live(world)
        assert world.node().running().version == "3.0.0"
        assert self.roll_back(world.node()).state is State.ARMED

    def test_is_refused_during_a_trial(self, world: World) -> None:
        node = on_trial(world)
        with pytest.raises(IllegalTransitionError):
            self.roll_back(node)
        assert memory_of(world).state is State.TRIAL


class TestTakingBack:
    def take_back(self, node: Node) -> NodeState:
        with node.locked() as found:
            return rebooting.roll_back(node, found)

    def test_an_armed_update_leaves_what_runs(self, world: World) -> None:
        node = armed(world)
        found = self.take_back(node)
        assert (found.state, found.update) == (State.IDLE, None)
        loader = node.loader.read()
        assert (loader.target, loader.slots[Slot.B]) == (Slot.A, DISARMED)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE

    def test_it_is_refused_from_then_on(self, world: World) -> None:
        node = armed(world)
        self.take_back(node)
        assert [why.code for why in node.store.read_denied().values()] == ["rolled-back"]
        due_now(world)
        with pytest.raises(VersionDeniedError):
            Engine(node=node).step()

    def test_an_update_being_installed_ends_it(self, world: World) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=True)
        found = self.take_back(node)
        assert found.state is State.IDLE
        assert node.loader.read().slots[Slot.B] == DISARMED
        assert node.store.read_journal() is None

    def test_no_failed_trial_is_made_of_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Power is cut after the slot was disarmed, before that could be noted."""
        node = armed(world)
        with node.locked() as found:
            withdraw(node, found)
            node.loader.disarm(Slot.B)
        for again in (new_process(world, monkeypatch), world.boot()):
            assert memory(again).state is State.IDLE
            assert again.store.read_denied() == {}
