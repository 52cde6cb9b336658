"""Boots that nobody ordered or that do not come, and a memory that is lost or fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot.gptprio import GptPriorities
from partitions.slots import Slot
from tests.sim.full_disk import read_only
from tests.sim.lives import due_now, let_time_pass, live, memory_of
from tests.sim.trials import CONFIRMED, DISARMED, armed, install, memory, on_trial, sick_of
from tests.sim.world import World, run_until
from updater import checking, rebooting, shown, updating
from updater.download import DownloadStoppedError
from updater.engine import REBOOT_PATIENCE, REBOOT_RETRY, Engine
from updater.errors import IllegalTransitionError, StateError
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE
from updater.node import Node
from updater.proof import ReadBackError
from updater.rebooting import (
    NothingToConfirmError,
    NothingToRebootError,
    RollbackRefusedError,
)
from updater.updating import NotConfirmedError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=1024 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


class TestABootOfAHalfWrittenSlot:
    """Somebody's boot menu, or the firmware's own order, chooses what nobody armed."""

    @pytest.fixture(params=["power", "read-back"])
    def half_written(
        self, request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> World:
        """A node whose install of 2.0.0 ended before the slot was verified."""
        ends = {"power": DownloadStoppedError, "read-back": ReadBackError}[request.param]

        def ended(*_: object, **__: object) -> None:
            raise ends("before the slot was verified")

        world.release("2.0.0", rollback_index=2)
        due_now(world)
        with monkeypatch.context() as patched:
            patched.setattr(updating, "verify_slot", ended)
            with pytest.raises(ends):
                Engine(node=world.node()).step()
        return world

    def choose(self, world: World) -> Node:
        GptPriorities(world.disk, world.node().layout).arm(Slot.B, tries=1)
        node = world.boot()
        assert node.boot().slot is Slot.B
        return node

    def test_goes_back_at_once_and_blames_no_version(self, half_written: World) -> None:
        world = half_written
        engine = Engine(node=self.choose(world))
        run_until(engine, "rebooting", steps=2)
        assert engine.node.loader.read().slots[Slot.B] == DISARMED
        node = world.boot()
        assert node.boot().slot is Slot.A
        found = memory(node)
        assert (found.state, node.store.read_denied()) == (State.IDLE, {})
        assert found.last_failure is not None
        assert found.last_failure.code == "slot-unverified"
        with node.locked() as found, pytest.raises(RollbackRefusedError):
            rebooting.roll_back(node, found)
        due_now(world)
        live(world)
        assert world.node().running().version == "2.0.0"
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_that_comes_again_stays_and_is_never_confirmed_by_itself(
        self, half_written: World
    ) -> None:
        world = half_written
        run_until(Engine(node=self.choose(world)), "rebooting", steps=2)
        assert memory(world.boot()).state is State.IDLE
        engine = Engine(node=self.choose(world))
        for _ in range(2):
            run_until(engine, "slot-unverified", steps=2)
            let_time_pass(world)
        assert memory_of(world).state is State.TRIAL
        assert not engine.node.loader.read().slots[Slot.B].confirmed
        status = "\n".join(shown.status_lines(shown.status(engine.node)))
        assert "was never verified" in status
        with engine.node.locked() as found:
            rebooting.confirm(engine.node, found)
        assert memory_of(world).unverified is None
        assert engine.node.loader.read().slots[Slot.B] == CONFIRMED

    def test_stays_where_there_is_nothing_to_go_back_to(self, half_written: World) -> None:
        world = half_written
        node = self.choose(world)
        somebody = GptPriorities(world.disk, node.layout)
        somebody.arm(Slot.B, tries=1)
        somebody.disarm(Slot.A)
        run_until(Engine(node=node), "slot-unverified", steps=2)
        assert memory_of(world).state is State.TRIAL

    def test_is_marked_though_the_loader_calls_it_confirmed(self, half_written: World) -> None:
        world = half_written
        GptPriorities(world.disk, world.node().layout).confirm(Slot.B)
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "rebooting", steps=2)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE


class TestALostStateFolder:
    def test_during_a_trial_the_trial_goes_on(self, world: World) -> None:
        node = on_trial(world)
        shutil.rmtree(world.folder / "state")
        found = memory(node)
        assert (found.state, found.update, found.permit) == (State.TRIAL, None, "unknown")
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B] == CONFIRMED
        assert node.store.read_floor() == 2

    def test_the_loader_still_ends_it(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        shutil.rmtree(world.folder / "state")
        run_until(engine, "health-pending")
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE

    def test_a_second_boot_of_it_is_a_trial_too(self, world: World) -> None:
        world.write_settings(disk=f'"{world.disk}"\ntries = 3')
        world.health = sick_of("2.0.0")
        world.write_settings(disk=f'"{world.disk}"\ntries = 3')
        engine = Engine(node=on_trial(world))
        shutil.rmtree(world.folder / "state")
        run_until(engine, "health-pending")
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.TRIAL

    def test_when_idle_nothing_happens(self, world: World) -> None:
        shutil.rmtree(world.folder / "state")
        node = world.boot()
        run_until(Engine(node=node), "idle")
        assert node.boot().slot is Slot.A
        assert node.running().version == "1.0.0"

    def test_while_armed_the_reboot_by_hand_is_a_trial(self, world: World) -> None:
        armed(world)
        shutil.rmtree(world.folder / "state")
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.TRIAL
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B] == CONFIRMED

    def test_a_lost_floor_is_no_way_below_what_runs(self, world: World) -> None:
        on_trial(world)
        live(world)
        (world.folder / "state" / "floor.json").unlink()
        node = world.node()
        with node.locked() as found, pytest.raises(RollbackRefusedError, match="index 1"):
            rebooting.roll_back(node, found)


class TestAStateFolderThatFails:
    """A trial ends whatever fails: the new system may be what broke the disk."""

    def test_does_not_keep_a_sick_system(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        with read_only(world.folder / "state"):
            engine.step()  # the look
            with pytest.raises(StateError):
                engine.step()
        assert engine.last_verdict is not None
        assert "2.0.0 is sick" in engine.last_verdict.sentence
        assert (world.folder / "run" / REBOOT_FILE).exists()
        assert engine.node.loader.read().slots[Slot.B] == DISARMED
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE
        (why,) = node.store.read_denied().values()
        assert why.code == "trial-boot-failed"
        assert "could not write anything" in why.sentence

    def test_does_not_throw_out_a_good_system(self, world: World) -> None:
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        with read_only(world.folder / "state"):
            engine.step()  # the look
            for _ in range(3):
                with pytest.raises(StateError):
                    engine.step()
        assert engine.node.loader.read().slots[Slot.B] == CONFIRMED
        assert not (world.folder / "run" / REBOOT_FILE).exists()
        run_until(engine, "idle")
        assert engine.node.store.read_floor() == 2

    def test_stops_an_idle_node_with_its_code(self, world: World) -> None:
        due_now(world)
        with read_only(world.folder / "state"), pytest.raises(StateError) as caught:
            Engine(node=world.node()).step()
        assert caught.value.code == "state-folder"


class TestARebootThatDoesNotCome:
    def test_is_given_up_and_the_permit_returned_until_it_is_ordered_again(
        self, world: World
    ) -> None:
        engine = Engine(node=install(world))
        run_until(engine, "rebooting")
        let_time_pass(world, REBOOT_PATIENCE.total_seconds())
        run_until(engine, "reboot-overdue")
        found = memory_of(world)
        assert (found.state, found.permit) == (State.ARMED, "none")
        assert found.last_failure is not None
        assert found.last_failure.code == "reboot-overdue"
        let_time_pass(world, REBOOT_RETRY.total_seconds())
        run_until(engine, "rebooting")
        assert memory_of(world).permit == "held"
        assert world.boot().boot().slot is Slot.B


class TestARebootByHand:
    def test_while_armed_begins_the_trial(self, world: World) -> None:
        armed(world)
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "idle")
        assert node.running().version == "2.0.0"
        assert node.loader.read().slots[Slot.B] == CONFIRMED

    def test_while_installing_goes_on_with_it(self, world: World) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=False)
        assert memory_of(world).state is State.INSTALLING
        node = world.boot()
        assert node.boot().slot is Slot.A
        run_until(Engine(node=node), "reboot-manual")
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_is_ordered_by_a_person_where_reboots_are_manual(self, world: World) -> None:
        node = armed(world)
        with node.locked() as found:
            rebooting.order_reboot(node, found)
        run_until(Engine(node=node), "rebooting")
        assert world.boot().boot().slot is Slot.B

    def test_needs_something_armed(self, world: World) -> None:
        node = world.node()
        with node.locked() as found, pytest.raises(NothingToRebootError, match="is idle"):
            rebooting.order_reboot(node, found)


class TestWithoutAConfirmedSlot:
    def test_nothing_is_installed(self, world: World) -> None:
        """The passive slot is the only way back: promise 3."""
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            found, release = checking.check(node, found, by_person=True)
            node.loader.arm(Slot.A, tries=1)
            before = world.slot_bytes(Slot.B)
            with pytest.raises(NotConfirmedError):
                updating.install(node, found, release, by_person=True)
        assert world.slot_bytes(Slot.B) == before
        assert world.payloads.sent == 0
        assert memory_of(world).state is State.IDLE

    def test_a_trial_does_not_even_check(self, world: World) -> None:
        node = on_trial(world)
        world.release("3.0.0", rollback_index=3)
        with node.locked() as found, pytest.raises(IllegalTransitionError):
            checking.check(node, found, by_person=True, forced=True)
        assert node.loader.read().slots[Slot.A] == CONFIRMED

    def test_a_person_confirms_only_a_trial(self, world: World) -> None:
        node = world.node()
        with node.locked() as found, pytest.raises(NothingToConfirmError):
            rebooting.confirm(node, found)
