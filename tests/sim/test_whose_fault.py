"""Bytes that read back wrong: a disk that lies, or a release that says what it does not make."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import images.build as build_room
from images.errors import OperationOutputError
from images.packing import Blob
from partitions.slots import Slot
from partitions.writer import RegionWriter
from tests.sim.lives import due_now, memory_of
from tests.sim.payloads import pack_bent
from tests.sim.world import World, run_until
from updater.engine import Engine
from updater.lifecycle import State
from updater.proof import ReadBackError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=4 * 1024 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def lying(monkeypatch: pytest.MonkeyPatch, act: Callable[[bytes], bytes]) -> None:
    """Let the first write of each install not land as it is said."""
    original = RegionWriter.write_at

    def write_at(self: RegionWriter, offset: int, data: bytes | memoryview) -> None:
        kept = act(bytes(data)) if offset == 0 else data
        original(self, offset, kept)

    monkeypatch.setattr(RegionWriter, "write_at", write_at)


@pytest.mark.parametrize(
    "act",
    [lambda _data: b"", lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:]],
    ids=["a lost write", "a flipped bit"],
)
def test_a_disk_that_lies_is_said_to_lie_and_nothing_is_kept_of_what_it_has(
    world: World, monkeypatch: pytest.MonkeyPatch, act: Callable[[bytes], bytes]
) -> None:
    world.release("2.0.0", rollback_index=1)
    due_now(world)
    with monkeypatch.context() as patched:
        lying(patched, act)
        with pytest.raises(ReadBackError):
            Engine(node=world.node()).step()
    node = world.node()
    assert not node.loader.read().slots[Slot.B].armed
    journal = node.store.read_journal()
    assert journal is not None
    assert journal.next_operation == 0
    failure = memory_of(world).last_failure
    assert failure is not None
    assert failure.code == "readback-mismatch"

    due_now(world)
    run_until(Engine(node=world.node()), "rebooting")
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")


def test_a_release_that_names_a_wrong_hash_is_the_publishers_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Blob] = []

    def second_wrong(blob: Blob) -> Blob:
        made.append(blob)
        return dataclasses.replace(blob, dst_sha256=os.urandom(32)) if len(made) == 2 else blob

    with monkeypatch.context() as patched:
        patched.setattr(build_room, "pack", pack_bent(second_wrong))
        world.release("2.0.0", rollback_index=1)
    assert len(made) >= 2
    due_now(world)
    with pytest.raises(OperationOutputError):
        Engine(node=world.node()).step()
    node = world.node()
    assert not node.loader.read().slots[Slot.B].armed
    assert memory_of(world).state is State.IDLE
    failure = memory_of(world).last_failure
    assert failure is not None
    assert failure.code == "operation-output"
    assert memory_of(world).failures_of("2.0.0") == 1  # a disk's fault is not counted against it
