"""What an attempt leaves behind when the loader's memory fails under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from partitions.errors import CustomCommandError
from partitions.slots import Slot
from tests.sim.cuts import Fuse, FusedLoader
from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater import shown
from updater.engine import Engine
from updater.lifecycle import State


class Stuck(FusedLoader):
    """Arms and says that it failed; then it can do nothing until it is mended."""

    stuck = False

    @override
    def disarm(self, slot: Slot) -> None:
        if self.stuck:
            raise CustomCommandError(f"disarm {slot.value}: the flash is locked")
        super().disarm(slot)

    @override
    def arm(self, slot: Slot, *, tries: int) -> None:
        super().arm(slot, tries=tries)
        self.stuck = True
        raise CustomCommandError(f"arm {slot.value}: the flash is full")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node at rest on 1.0.0, with 2.0.0 released."""
    with World(tmp_path, image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        made.release("2.0.0", rollback_index=2)
        due_now(made)
        yield made


def test_a_disarming_that_fails_too_does_not_hide_why_the_attempt_failed(world: World) -> None:
    node = world.node()
    stuck = Stuck(node.loader, Fuse())
    node.loader = stuck
    engine = Engine(node=node)
    with pytest.raises(CustomCommandError, match="the flash is full"):
        run_until(engine, "idle")
    assert "the flash is full" in shown.status(node)["last_failure"]["sentence"]
    with pytest.raises(CustomCommandError, match="the flash is locked"):
        engine.step()  # taken up again, it begins with disarming
    assert "the flash is full" in shown.status(node)["last_failure"]["sentence"]
    assert node.store.read_state().state is State.INSTALLING
    stuck.stuck = False
    with pytest.raises(CustomCommandError, match="the flash is full"):
        engine.step()
