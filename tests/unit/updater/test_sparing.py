"""What the passive slot holds is not written again, and looking for it is given up in time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from partitions.readback import RegionReader
from partitions.slots import Region
from updater.sparing import EVERY, FIRST_BYTES, SHARE_PIECES, Sparing, Work

BLOCK: Final = 4096
MIB: Final = 1024 * 1024
AT: Final = 3 * 512  # a partition need not begin at a multiple of 4096
OLD: Final = random.Random(1).randbytes(3 * MIB)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[RegionReader]:
    (tmp_path / "disk").write_bytes(bytes(AT) + OLD + bytes(40 * MIB))
    size = len(OLD) + 40 * MIB
    region = Region(path=tmp_path / "disk", offset=AT, size=size, partuuid="", label="b")
    with RegionReader(region, buffers=2) as made:
        yield made


def changed(blocks: set[int]) -> bytearray:
    data = bytearray(OLD)
    for block in blocks:
        data[block * BLOCK + 17] ^= 1
    return data


@pytest.mark.parametrize(
    "blocks", [set(), {0}, {767}, {1, 2, 3, 9}, {255, 256}, set(range(768)), set(range(0, 768, 2))]
)
def test_exactly_the_blocks_that_differ_are_left(reader: RegionReader, blocks: set[int]) -> None:
    data = changed(blocks)
    sparing = Sparing({"usr": reader}, BLOCK)
    work = sparing.left_of(1, "usr", Work([(0, memoryview(data))], []))
    left = {
        at // BLOCK + number for at, piece in work.pieces for number in range(len(piece) // BLOCK)
    }
    assert left == blocks
    assert all(piece == data[at : at + len(piece)] for at, piece in work.pieces)
    assert work.kept == len(OLD) - len(blocks) * BLOCK
    assert work.bytes_written == len(blocks) * BLOCK
    runs = sum(1 for block in blocks if block - 1 not in blocks)
    assert len(work.pieces) == runs


def test_several_extents_are_compared_where_each_of_them_goes(reader: RegionReader) -> None:
    data = bytearray(OLD[MIB : MIB + 2 * BLOCK] + OLD[:BLOCK] + b"x" * BLOCK)
    view = memoryview(data)
    pieces = [
        (MIB, view[: 2 * BLOCK]),
        (0, view[2 * BLOCK : 3 * BLOCK]),
        (BLOCK, view[3 * BLOCK :]),
    ]
    work = Sparing({"usr": reader}, BLOCK).left_of(1, "usr", Work(pieces, []))
    assert [at for at, _ in work.pieces] == [BLOCK]
    assert work.kept == 3 * BLOCK


def test_a_last_block_that_is_cut_is_compared_too(reader: RegionReader) -> None:
    data = bytearray(OLD[: BLOCK + 700])
    sparing = Sparing({"usr": reader}, BLOCK)
    assert sparing.left_of(1, "usr", Work([(0, memoryview(data))], [])).pieces == []
    data[BLOCK + 699] ^= 1
    (piece,) = sparing.left_of(1, "usr", Work([(0, memoryview(data))], [])).pieces
    assert (piece[0], len(piece[1])) == (BLOCK, 700)


def test_zeros_that_are_there_are_not_cleared(reader: RegionReader) -> None:
    work = Work([], [(2 * MIB, 4 * MIB)])
    left = Sparing({"usr": reader}, BLOCK).left_of(1, "usr", work)
    assert left.clears == [(2 * MIB, MIB)]
    assert left.kept == 3 * MIB


def test_a_part_that_is_not_to_be_compared_is_written_whole(reader: RegionReader) -> None:
    work = Work([(0, memoryview(changed(set())))], [])
    assert Sparing({"usr": reader}, BLOCK).left_of(1, "kernel", work) is work


class TestGivingUp:
    def numbers(self, sparing: Sparing, data: bytearray, count: int) -> list[int]:
        """Return the operations that were compared, of `count` of 1 MiB each."""
        work = Work([(0, memoryview(data)[:MIB])], [])
        return [n for n in range(count) if sparing.left_of(n, "usr", work) is not work]

    def test_a_slot_that_holds_something_else_is_soon_let_be(self, reader: RegionReader) -> None:
        other = bytearray(random.Random(2).randbytes(MIB))
        first = FIRST_BYTES // MIB + 1
        looked = self.numbers(Sparing({"usr": reader}, BLOCK), other, 64)
        assert looked == [*range(first), *range(first + -first % EVERY, 64, EVERY)]

    def test_a_slot_that_holds_an_older_version_is_compared_to_the_end(
        self, reader: RegionReader
    ) -> None:
        older = changed(set(range(240)))
        assert self.numbers(Sparing({"usr": reader}, BLOCK), older, 200) == [*range(200)]

    def test_what_was_given_up_is_taken_up_again(self, reader: RegionReader) -> None:
        sparing = Sparing({"usr": reader}, BLOCK)
        self.numbers(sparing, bytearray(random.Random(2).randbytes(MIB)), 40)
        looked = self.numbers(sparing, changed(set()), 40)
        assert looked[0] == 0
        assert looked[-20:] == [*range(20, 40)]

    def test_zeros_are_looked_for_all_the_same_up_to_what_is_none(
        self, reader: RegionReader
    ) -> None:
        sparing = Sparing({"usr": reader}, BLOCK)
        self.numbers(sparing, bytearray(random.Random(2).randbytes(MIB)), 40)
        zeros, other = (3 * MIB, 4 * MIB), (2 * MIB, 4 * MIB)  # the last MiB of OLD is in `other`
        left = sparing.left_of(41, "usr", Work([], [zeros, other]))
        assert left.clears == [other]
        assert left.kept == 4 * MIB


def test_shares_are_all_of_the_work_and_each_is_small() -> None:
    pieces = [(at, memoryview(bytes(8))) for at in range(0, 90, 10)]
    clears = [(100, 8), (200, 8)]
    shares = list(Work(pieces, clears).shares())
    assert [piece for share in shares for piece in share.pieces] == pieces
    assert [clear for share in shares for clear in share.clears] == clears
    assert max(len(share.pieces) for share in shares) == SHARE_PIECES
    assert list(Work([], []).shares()) == []
