"""What an attempt leaves behind when the loader's memory fails under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typing_extensions import override

from partitions.errors import CustomCommandError
from partitions.slots import Slot
from tests.sim.cuts import Fuse, FusedLoader
from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater import shown
from updater.engine import Engine
from updater.errors import StateError
from updater.held import LocalOutput, Origin, Scan
from updater.lifecycle import State
from updater.reuse import DictionaryLostError
from updater.state import NodeState


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


def test_what_is_written_is_verified_anew_when_the_state_folder_failed_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.node()
    engine = Engine(node=node)

    def kept_and_lost(state: NodeState) -> None:
        really(state)
        if state.state is State.VERIFYING:
            monkeypatch.setattr(node.store, "write_state", really)
            raise StateError("the folder cannot be flushed: Input/output error")

    really = node.store.write_state
    monkeypatch.setattr(node.store, "write_state", kept_and_lost)
    with pytest.raises(StateError):
        run_until(engine, "rebooting")
    assert node.store.read_state().state is State.VERIFYING
    run_until(engine, "rebooting")


def test_blocks_that_are_not_what_they_seemed_are_fetched_within_the_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is said to be in the booted slot; each lie costs a new look, the last all trust."""
    asked: list[int] = []

    def everything(scan: Scan) -> dict[int, LocalOutput]:
        asked.append(len(scan.avoided))
        return {number: LocalOutput(None, Origin.BOOTED) for number in scan.open()}

    monkeypatch.setattr("updater.reuse.at_the_same_place", everything)
    run_until(Engine(node=world.node()), "rebooting")
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert asked == list(range(len(asked)))


def test_a_dictionary_that_the_disk_lost_lets_the_next_attempt_begin_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal names is not what the disk holds: the same would fail for ever."""

    def lost(*_: object) -> None:
        node = world.node()
        journal = node.store.read_journal()
        assert journal is not None
        node.store.write_journal(msgspec.structs.replace(journal, next_operation=1))
        raise DictionaryLostError("part usr does not hold what operation 0 made")

    with monkeypatch.context() as patch:
        patch.setattr("updater.writing.write_slot", lost)
        with pytest.raises(DictionaryLostError):
            run_until(Engine(node=world.node()), "idle")
    journal = world.node().store.read_journal()
    assert journal is None or journal.next_operation == 0
    assert shown.status(world.node())["last_failure"]["code"] == "dictionary-lost"
