"""Trials on firmware with a will of its own: it appends entries, and others take BootNext."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.efi_firmware import BOOT_ORDER, packed
from partitions.efi_variables import EfiVariables
from partitions.slots import Slot
from tests.sim.lives import due_now, live, memory_of
from tests.sim.world import World, run_until
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
