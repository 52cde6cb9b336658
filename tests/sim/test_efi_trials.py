"""Trials on firmware with a will of its own: it appends entries, and others take BootNext."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from partitions.efi_firmware import BOOT_NEXT, BOOT_ORDER, packed
from partitions.efi_variables import EfiVariables
from partitions.errors import EfiEntryError
from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, live, memory_of
from tests.sim.world import World, run_until
from updater import rebooting
from updater.engine import Engine
from updater.lifecycle import State


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A by the firmware's entries, and rests."""
    with World(tmp_path, image_size=512 * 1024, boot_control="efi") as made:
        run_until(Engine(node=made.boot()), "idle")
        made.release("2.0.0", rollback_index=2)
        due_now(made)
        yield made


def variables(world: World) -> EfiVariables:
    return EfiVariables(world.folder / "efivars")


def test_an_entry_that_the_firmware_appends_to_its_order_does_not_end_the_trial(
    world: World,
) -> None:
    world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
    world.write_settings()
    run_until(Engine(node=world.node()), "rebooting")
    assert world.boot().boot().slot is Slot.B
    variables(world).write(BOOT_ORDER, packed([0, 3, 1]))
    run_until(Engine(node=world.node()), "health-pending")
    assert memory_of(world).state is State.TRIAL
    live(world)
    node = world.node()
    assert (node.boot().slot, set(node.store.read_denied())) == (Slot.A, {"2.0.0"})


FIRMWARE_UPDATE = packed([3])  # as fwupd puts its own entry there


def test_a_boot_next_that_somebody_took_is_ours_again_before_the_reboot(world: World) -> None:
    world.write_settings(reboot='"manual"')
    engine = Engine(node=world.node())
    run_until(engine, "reboot-manual")
    variables(world).write(BOOT_NEXT, FIRMWARE_UPDATE)
    with engine.node.locked() as memory:
        rebooting.order_reboot(engine.node, memory)
    run_until(engine, "rebooting")
    assert variables(world).read(BOOT_NEXT) == packed([1])
    assert world.boot().boot().slot is Slot.B
    run_until(Engine(node=world.node()), "idle")


def test_a_slot_that_cannot_be_armed_again_is_not_rebooted_into(world: World) -> None:
    world.write_settings(reboot='"manual"')
    engine = Engine(node=world.node())
    run_until(engine, "reboot-manual")
    variables(world).remove(BOOT_NEXT)
    variables(world).remove("Boot0001")
    with engine.node.locked() as memory:
        rebooting.order_reboot(engine.node, memory)
    with pytest.raises(EfiEntryError):
        run_until(engine, "rebooting")
    assert memory_of(world).state is State.ARMED
    run_until(engine, "reboot-overdue")


def somebody_reboots(world: World) -> None:
    """Take BootNext, as a firmware update does: its own boot, then the order of boots."""
    variables(world).write(BOOT_NEXT, FIRMWARE_UPDATE)
    variables(world).remove(BOOT_NEXT)
    assert world.boot().boot().slot is Slot.A


def test_a_version_whose_boot_next_was_taken_is_tried_once_more(world: World) -> None:
    world.write_settings(reboot='"manual"')
    run_until(Engine(node=world.node()), "reboot-manual")
    somebody_reboots(world)
    run_until(Engine(node=world.node()), "reboot-manual")
    node = world.node()
    assert node.store.read_denied() == {}
    assert node.loader.read().target is Slot.B  # whoever reboots now gets it
    assert world.boot().boot().slot is Slot.B
    run_until(Engine(node=world.node()), "idle")
    assert world.node().loader.read().slots[Slot.B].confirmed


def test_a_second_time_it_is_denied_with_all_that_may_be_wrong(world: World) -> None:
    world.write_settings(reboot='"manual"')
    run_until(Engine(node=world.node()), "reboot-manual")
    somebody_reboots(world)
    run_until(Engine(node=world.node()), "reboot-manual")
    somebody_reboots(world)
    live(world)
    (why,) = world.node().store.read_denied().values()
    assert why.code == "trial-boot-failed"
    assert "was not booted, or never came as far as its service" in why.sentence
    assert "BootNext" in why.hint


def test_a_trial_that_we_ordered_and_that_never_came_up_is_not_tried_again(world: World) -> None:
    run_until(Engine(node=world.node()), "rebooting")
    assert world.boot().boot().slot is Slot.B
    assert world.boot().boot().slot is Slot.A  # it ended before its service came up
    live(world)
    (why,) = world.node().store.read_denied().values()
    assert why.code == "trial-boot-failed"


def test_a_version_that_is_taken_back_is_not_armed_again(world: World) -> None:
    world.write_settings(reboot='"manual"')
    engine = Engine(node=world.node())
    run_until(engine, "reboot-manual")
    node = engine.node
    with node.locked() as memory:
        assert memory.update is not None
        update = msgspec.structs.replace(memory.update, withdrawn=True)
        memory = node.keep(memory, update=update)
        node.loader.disarm(Slot.B)
        rebooting.reboot(node, memory)
    assert node.loader.read().target is Slot.A


class TestASecondSlotThatAPersonStarts:
    """It is confirmed, and looks like a trial: docs/loaders.md says why it is taken for one."""

    @pytest.fixture
    def updated(self, world: World) -> World:
        """A node that runs 2.0.0 in slot B, with 1.0.0 in slot A to fall back to."""
        run_until(Engine(node=world.node()), "rebooting")
        assert world.boot().boot().slot is Slot.B
        run_until(Engine(node=world.node()), "idle")
        assert variables(world).read(BOOT_ORDER) == packed([1, 0, 3])
        return world

    def start(self, world: World, slot: Slot) -> None:
        variables(world).write(BOOT_NEXT, packed([list(Slot).index(slot)]))
        assert world.boot().boot().slot is slot

    def stays_unproven(self, world: World, order: list[int]) -> None:
        """Look at a sick system for long past the deadline; then it is the other one's turn."""
        engine = Engine(node=world.node())
        for _ in range(3):
            run_until(engine, "health-pending")
            let_time_pass(world)
        node = world.node()
        booted = node.boot().slot
        assert memory_of(world).state is State.TRIAL
        assert not node.loader.read().slots[booted].confirmed
        assert variables(world).read(BOOT_ORDER) == packed(order)
        assert world.boot().boot().slot is booted.other
        live(world)
        assert world.node().boot().slot is booted.other

    def test_is_the_first_once_it_proved_healthy_and_the_same_way_leads_back(
        self, updated: World
    ) -> None:
        for slot, order in ((Slot.A, [0, 1, 3]), (Slot.B, [1, 0, 3])):
            self.start(updated, slot)
            run_until(Engine(node=updated.node()), "idle")
            assert variables(updated).read(BOOT_ORDER) == packed(order)
        node = updated.node()
        assert node.store.read_denied() == {}
        assert node.store.read_marker() is None  # no guard of trials either

    def test_stays_as_it_is_while_it_is_not_healthy(self, updated: World) -> None:
        updated.health = ["sh", "-c", "test $BASCULE_VERSION != 1.0.0"]
        updated.write_settings()
        self.start(updated, Slot.A)
        self.stays_unproven(updated, [1, 0, 3])
        assert updated.node().store.read_denied() == {}

    def test_is_not_proven_by_a_memory_without_a_trial(self, world: World) -> None:
        """That is what is left of one that failed, and the firmware appended its entry since."""
        world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
        world.write_settings()
        live(world)
        variables(world).write(BOOT_ORDER, packed([0, 3, 1]))
        memory = memory_of(world)
        assert (memory.state, memory.update) == (State.IDLE, None)
        self.start(world, Slot.B)
        self.stays_unproven(world, [0, 3, 1])
