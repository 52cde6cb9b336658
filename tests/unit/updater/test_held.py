from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from images.block_index import short_hashes
from images.payload import (
    BlockIndex,
    Extent,
    IndexGroup,
    Operation,
    OperationKind,
    Part,
)
from updater.held import (
    SAMPLE_BLOCKS,
    LocalOutput,
    Origin,
    Scan,
    anywhere,
    at_the_same_place,
    groups_for,
    place,
)

BLOCK = 4096


def block(number: int) -> bytes:
    """Return a block of its own for each number; 0 is zeros."""
    return bytes(BLOCK) if number == 0 else random.Random(number).randbytes(64) * (BLOCK // 64)


@dataclass
class Slot:
    """An image whose blocks are numbers."""

    numbers: Sequence[int]

    def read_at(self, offset: int, size: int) -> bytes:
        data = b"".join(map(block, self.numbers))
        return data[offset : offset + size]


def part_of(numbers: Sequence[int], operations: Sequence[Sequence[int]]) -> tuple[Part, bytes]:
    """Return a part whose operations make the named blocks of an image, and its index."""
    made: list[Operation] = []
    index = b""
    groups: list[IndexGroup] = []
    for number, positions in enumerate(operations):
        data = b"".join(block(numbers[position]) for position in positions)
        hashes = short_hashes(data, block_size=BLOCK, hash_size=6)
        groups.append(
            IndexGroup(
                first=number,
                count=1,
                offset=len(index),
                length=len(hashes),
                sha256=hashlib.sha256(hashes).digest(),
            )
        )
        index += hashes
        made.append(
            Operation(
                kind=OperationKind.REPLACE,
                data_offset=0,
                data_length=len(data),
                dst_extents=tuple(Extent(position, 1) for position in positions),
                dst_length=len(data),
                output_limit=len(data),
                data_sha256=None,
                dst_sha256=hashlib.sha256(data).digest(),
            )
        )
    part = Part(
        name="usr",
        size=len(numbers) * BLOCK,
        sha256=b"",
        operations=tuple(made),
        index=BlockIndex(hash_size=6, groups=tuple(groups)),
    )
    return part, index


def scan_of(
    part: Part,
    images: Mapping[Origin, Sequence[int]],
    first: int = 0,
    avoided: frozenset[int] = frozenset(),
) -> Scan:
    slots = {origin: Slot(numbers) for origin, numbers in images.items()}
    return Scan(
        part=part,
        first=first,
        images=slots,
        block_size=BLOCK,
        avoided=avoided,
        look=lambda: None,
    )


def level_2(scan: Scan, index: bytes, numbers: Sequence[int]) -> dict[int, LocalOutput]:
    groups = groups_for(scan.part, numbers)
    fetched = [(g, index[g.offset : g.offset + g.length]) for g in groups]
    return anywhere(scan, numbers, fetched)


NEW = [1, 2, 3, 4, 5, 6]
OPERATIONS = [[0, 1], [2, 3], [4, 5]]


def test_a_slot_that_holds_everything_settles_all_at_level_1() -> None:
    part, _ = part_of(NEW, OPERATIONS)
    found = at_the_same_place(scan_of(part, {Origin.BOOTED: NEW}))
    assert set(found) == {0, 1, 2}
    assert not found[0].in_place


def test_the_passive_slot_is_asked_first_as_nothing_is_to_be_written_then() -> None:
    part, _ = part_of(NEW, OPERATIONS)
    found = at_the_same_place(scan_of(part, {Origin.BOOTED: NEW, Origin.PASSIVE: NEW}))
    assert all(output.in_place for output in found.values())


def test_a_slot_that_holds_nothing_settles_nothing() -> None:
    part, index = part_of(NEW, OPERATIONS)
    scan = scan_of(part, {Origin.BOOTED: [9] * 6, Origin.PASSIVE: [8] * 6})
    assert at_the_same_place(scan) == {}
    assert level_2(scan, index, [0, 1, 2]) == {}


@pytest.mark.parametrize(("held", "settled"), [(1, 0), (6, 0), (8, 8), (32, 32)])
def test_where_few_lie_in_their_place_level_2_finds_them(held: int, settled: int) -> None:
    """Of 32 operations a quarter is enough; the sample is every second one."""
    numbers = list(range(1, 33))
    part, index = part_of(numbers, [[at] for at in range(32)])
    slot = [*numbers[:held], *[99] * (32 - held)]
    scan = scan_of(part, {Origin.BOOTED: slot})
    found = at_the_same_place(scan)
    assert len(found) == settled
    found |= level_2(scan, index, [n for n in range(32) if n not in found])
    assert set(found) == set(range(held))


def test_an_operation_is_held_only_when_each_of_its_blocks_is_somewhere() -> None:
    part, index = part_of(NEW, OPERATIONS)
    scan = scan_of(part, {Origin.BOOTED: [9, 4, 3, 1, 5, 2]})
    found = level_2(scan, index, [0, 1, 2])
    assert set(found) == {0, 1}
    places = found[0].places
    assert places is not None
    assert list(places) == [place(Origin.BOOTED, 3), place(Origin.BOOTED, 5)]


def test_zeros_are_everywhere() -> None:
    part, index = part_of([0, 0], [[0, 1]])
    scan = scan_of(part, {Origin.BOOTED: [9]})
    found = level_2(scan, index, [0])
    assert found[0].read(part.operations[0], scan.images, block_size=BLOCK) == bytes(2 * BLOCK)


def test_what_an_earlier_operation_overwrites_is_no_source() -> None:
    """Blocks 0 and 1 of the passive slot, which operation 0 writes, hold what operation 2 makes."""
    part, index = part_of(NEW, OPERATIONS)
    scan = scan_of(part, {Origin.PASSIVE: [5, 6, 9, 9, 1, 2]})
    assert set(level_2(scan, index, [0, 1, 2])) == {0}


def test_what_is_written_already_stays_a_source() -> None:
    part, index = part_of([5, 6, 3, 4, 5, 6], OPERATIONS)
    scan = scan_of(part, {Origin.PASSIVE: [5, 6, 9, 9, 9, 9]}, first=1)
    assert set(level_2(scan, index, [1, 2])) == {2}


def test_beyond_the_image_nothing_is_overwritten() -> None:
    part, index = part_of(NEW, OPERATIONS)
    scan = scan_of(part, {Origin.PASSIVE: [9] * 6 + [5, 6]})
    assert set(level_2(scan, index, [0, 1, 2])) == {2}


def test_a_slot_of_which_no_sample_serves_is_not_read_whole() -> None:
    """Of 4096 blocks every eighth is looked at."""

    class Counted(Slot):
        read = 0

        @override
        def read_at(self, offset: int, size: int) -> bytes:
            Counted.read += size
            if size == BLOCK:
                return block(self.numbers[offset // BLOCK])
            return bytes(max(0, min(size, len(self.numbers) * BLOCK - offset)))

    numbers = list(range(1, 4097))
    part, index = part_of(numbers, [range(4096)])
    scan = scan_of(part, {})
    scan = replace(scan, images={Origin.PASSIVE: Counted([5000] * 8192)})
    assert level_2(scan, index, [0]) == {}
    assert Counted.read == 2 * SAMPLE_BLOCKS * BLOCK
    scan = replace(scan, images={Origin.PASSIVE: Counted([5000] * 8 + [1] * 8184)})
    level_2(scan, index, [0])
    assert Counted.read > 4096 * BLOCK


def test_what_is_written_or_avoided_is_not_looked_for() -> None:
    part, _ = part_of(NEW, OPERATIONS)
    scan = scan_of(part, {Origin.BOOTED: NEW}, first=1, avoided=frozenset({2}))
    assert set(at_the_same_place(scan)) == {1}


def test_a_wrong_block_of_the_same_short_hash_is_not_taken_for_the_output() -> None:
    part, index = part_of(NEW, OPERATIONS)
    lying = short_hashes(block(9) + block(8), block_size=BLOCK, hash_size=6) + index[12:]
    scan = scan_of(part, {Origin.BOOTED: [8, 9]})
    found = level_2(scan, lying, [0])
    assert found[0].read(part.operations[0], scan.images, block_size=BLOCK) is None


def test_only_groups_of_open_operations_are_fetched() -> None:
    part, _ = part_of(NEW, OPERATIONS)
    assert [group.first for group in groups_for(part, [0, 2])] == [0, 2]
    assert groups_for(part, []) == []


@settings(max_examples=40, deadline=None)
@given(
    new=st.lists(st.integers(0, 12), min_size=6, max_size=16),
    booted=st.lists(st.integers(0, 12), max_size=16),
    passive=st.lists(st.integers(0, 12), max_size=20),
    seed=st.integers(0, 9),
)
def test_what_is_held_can_be_made_in_order(
    new: list[int], booted: list[int], passive: list[int], seed: int
) -> None:
    """The passive slot changes with each operation, as on a disk."""
    chance = random.Random(seed)
    if seed % 2:  # all that is needed is there, most of it where something else belongs
        passive = chance.sample(new, len(new))
    positions = chance.sample(range(len(new)), len(new))
    operations = [positions[at : at + 3] for at in range(0, len(new), 3)]
    part, index = part_of(new, operations)
    target = Slot([*passive, *[99] * (len(new) - len(passive))])
    scan = Scan(
        part=part,
        first=0,
        images={Origin.BOOTED: Slot(booted), Origin.PASSIVE: target},
        block_size=BLOCK,
        avoided=frozenset(),
        look=lambda: None,
    )
    found = at_the_same_place(scan)
    found |= level_2(scan, index, [n for n in range(len(operations)) if n not in found])
    held = {*booted, 0}
    for number, made in enumerate(operations):
        if {new[position] for position in made} <= held:
            assert number in found
        if number in found:
            output = found[number].read(part.operations[number], scan.images, block_size=BLOCK)
            assert output is not None
        written = list(target.numbers)
        for position in made:
            written[position] = new[position]
        target.numbers = written
