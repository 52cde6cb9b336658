"""The ring that operations make their output in: nothing is overwritten while it is needed."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from images.payload import Extent, Operation, OperationKind, Part, Step
from updater import outputs
from updater.download import DownloadStoppedError
from updater.outputs import Layout, Outputs, mirrored

BLOCK: Final = 4096
MIB: Final = 1024 * 1024


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "IN_FLIGHT_BYTES", 4 * BLOCK)
    monkeypatch.setattr(outputs, "APART_BYTES", 16 * BLOCK)


@dataclass(frozen=True)
class Op:
    """An operation of so many blocks; `back` operations before it and `left` out are not used."""

    blocks: int
    back: int = 0
    left: int = 0
    clears: bool = False


def steps_of(*parts: Sequence[Op]) -> list[Step]:
    steps = []
    for name, ops in enumerate(parts):
        operations = tuple(
            Operation(
                kind=OperationKind.ZERO
                if op.clears
                else OperationKind.TARGET_ZSTD
                if op.back
                else OperationKind.REPLACE,
                data_offset=None,
                data_length=0,
                dst_extents=(Extent(0, op.blocks),),
                dst_length=None if op.clears else op.blocks * BLOCK,
                output_limit=op.blocks * BLOCK,
                data_sha256=None,
                dst_sha256=bytes(32),
                dictionary_first=number - op.back if op.back else 0,
                dictionary_count=op.back - op.left if op.back else 0,
            )
            for number, op in enumerate(ops)
        )
        part = Part(name=str(name), size=0, sha256=b"", operations=operations)
        steps += [Step(part, operation) for operation in operations]
    return steps


def layout_of(steps: Sequence[Step], begin: int = 0) -> Layout:
    return Layout.of(steps, begin=begin, block_size=BLOCK, made=lambda _: True)


def test_both_halves_of_the_memory_are_the_same_bytes() -> None:
    memory = mirrored(4 * BLOCK)
    memory[100:103] = b"one"
    memory[4 * BLOCK + 200 : 4 * BLOCK + 203] = b"two"
    assert memory[4 * BLOCK + 100 : 4 * BLOCK + 103] == b"one"
    assert memory[200:203] == b"two"
    memory[4 * BLOCK - 2 : 4 * BLOCK + 2] = b"over"
    assert memory[:2] == b"er"


def test_a_view_outlives_the_ring() -> None:
    ring = Outputs(layout_of(steps_of([Op(2), Op(2)])), 0)
    operation = steps_of([Op(2), Op(2)])[0].operation
    room = ring.room(0, operation, block_size=BLOCK)
    ring.close()
    del ring
    room[:4] = b"kept"
    assert bytes(room[:4]) == b"kept"


@pytest.mark.parametrize("seed", range(20))
def test_what_a_dictionary_needs_is_there_when_it_is_needed(seed: int) -> None:
    """Every output is its number; the writer is some operations behind, as far as it may."""
    chance = random.Random(seed)
    parts = []
    for _ in range(2):
        ops: list[Op] = [Op(chance.randrange(1, 5))]
        for number in range(1, 60):
            back = chance.randrange(min(number, 4) + 1) if not ops[-1].clears else 0
            back = back if not any(op.clears for op in ops[number - back :]) else 0
            left = chance.randrange(back) if back else 0
            ops.append(
                Op(chance.randrange(1, 5), back, left, clears=not back and chance.random() < 0.1)
            )
        parts.append(ops)
    steps = steps_of(*parts)
    begin = chance.choice([0, 0, 17, 60, 119])
    layout = layout_of(steps, begin)
    ring = Outputs(layout, begin)
    firsts = outputs.first_numbers(steps)
    waiting: list[int] = []
    for number in range(ring.needed, len(steps)):
        step = steps[number]
        assert step.part is not None
        needed = layout.starts[number + 1]
        while waiting and needed - layout.starts[layout.kept[ring._unwritten]] > layout.size:
            ring.written(waiting.pop(0))
        room = ring.room(number, step.operation, block_size=BLOCK)
        if number >= begin and step.operation.dictionary_count:
            first = firsts[step.part.name] + step.operation.dictionary_first
            got = ring.dictionary(first, step.operation.dictionary_count)
            expected = b"".join(
                bytes([n]) * steps[n].operation.output_limit
                for n in range(first, first + step.operation.dictionary_count)
            )
            assert got == expected
        room[:] = bytes([number]) * len(room)
        if number >= begin:
            waiting.append(number)


def test_an_output_waits_until_those_before_it_are_written() -> None:
    steps = steps_of([Op(4), Op(4), Op(4)])
    ring = Outputs(layout_of(steps), 0)  # 4 blocks, and 4 in flight
    for number in range(2):
        ring.room(number, steps[number].operation, block_size=BLOCK)
    got: list[int] = []

    def third() -> None:
        got.append(len(ring.room(2, steps[2].operation, block_size=BLOCK)))

    waiting = threading.Thread(target=third)
    waiting.start()
    waiting.join(0.05)
    assert got == []
    ring.written(0)
    waiting.join(60)
    assert got == [4 * BLOCK]


def test_pages_are_given_back_once_what_they_hold_is_written() -> None:
    steps = steps_of([Op(4), Op(4), Op(4)])
    ring = Outputs(layout_of(steps), 0)
    room = ring.room(0, steps[0].operation, block_size=BLOCK)
    room[:] = b"x" * len(room)
    waiting = threading.Thread(target=ring.give_back, args=(1,))
    waiting.start()
    waiting.join(0.05)
    assert bytes(room) == b"x" * len(room)  # it is not written yet
    ring.written(0)
    waiting.join(60)
    assert bytes(room) == bytes(len(room))


def test_pages_that_dictionaries_need_are_kept() -> None:
    steps = steps_of([Op(4), Op(4, 1), Op(4)])
    ring = Outputs(layout_of(steps), 0)
    room = ring.room(0, steps[0].operation, block_size=BLOCK)
    room[:] = b"x" * len(room)
    ring.written(0)
    ring.give_back(1)
    assert bytes(room) == b"x" * len(room)


def test_who_waits_to_give_pages_back_is_told_of_the_end() -> None:
    ring = Outputs(layout_of(steps_of([Op(4), Op(4)])), 0)
    ending = threading.Thread(target=ring.close)
    ending.start()
    with pytest.raises(DownloadStoppedError):
        ring.give_back(1)
    ending.join()


def test_who_waits_is_told_of_the_end() -> None:
    steps = steps_of([Op(4), Op(4), Op(4)])
    ring = Outputs(layout_of(steps), 0)
    for number in range(2):
        ring.room(number, steps[number].operation, block_size=BLOCK)
    ending = threading.Thread(target=ring.close)
    ending.start()
    with pytest.raises(DownloadStoppedError):
        ring.room(2, steps[2].operation, block_size=BLOCK)
    ending.join()


def test_a_large_output_has_memory_of_its_own() -> None:
    steps = steps_of([Op(17), Op(1)])
    layout = layout_of(steps)
    assert layout.size == 5 * BLOCK
    room = Outputs(layout, 0).room(0, steps[0].operation, block_size=BLOCK)
    assert len(room) == 17 * BLOCK


def test_operations_before_the_first_take_no_room_but_for_dictionaries() -> None:
    steps = steps_of([Op(3), Op(3), Op(3), Op(3), Op(1, back=2, left=1), Op(1)])
    assert Outputs(layout_of(steps, 4), 4).needed == 2
    assert layout_of(steps, 4).starts[2] == 0
    assert Outputs(layout_of(steps, 5), 5).needed == 5
    held = Layout.of(steps, begin=4, block_size=BLOCK, made=lambda number: number != 4)
    assert Outputs(held, 4).needed == 4
    assert layout_of(steps).referred == {2}
    assert held.referred == frozenset()
