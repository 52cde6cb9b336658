"""Blocks of a new image that stand in the old one: where, and that they really do."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.delta_blocks import BLOCK_SIZE, CANDIDATES_MAX, Matched, Run, match, tabulate
from tests.sim.payloads import image

A, B, C, D = (image(1, seed=seed) for seed in range(4))
ZERO = bytes(BLOCK_SIZE)


def matched(
    old: bytes, new: bytes, *, copies_max: int = 1000, zeros_max: int = 1000, lies: bool = False
) -> Matched:
    """Match two images; with `lies` every hash is the same."""

    def is_same(source: int, at: int, count: int) -> int:
        for number in range(count):
            if block(old, source + number) != block(new, at + number):
                return number
        return count

    before, after = (tabulate(chunks(data), workers=1) for data in (old, new))
    if lies:
        for table in (before, after):
            table.hashes[~table.zero] = np.uint64(7)
    return match(before, after, is_same, copies_max=copies_max, zeros_max=zeros_max)


def chunks(data: bytes) -> Iterable[bytes]:
    size = 3 * BLOCK_SIZE
    return (data[at : at + size] for at in range(0, len(data), size))


def block(data: bytes, number: int) -> bytes:
    return data[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]


def check(old: bytes, new: bytes, found: Matched) -> None:
    """Check by brute force that each block is told once, and truly."""
    told: list[int] = []
    for run in found.copies:
        assert run.source is not None
        for number in range(run.count):
            assert block(old, run.source + number) == block(new, run.start + number)
    for run in found.zeros:
        assert not new[run.start * BLOCK_SIZE : (run.start + run.count) * BLOCK_SIZE].strip(b"\0")
    for run in (*found.copies, *found.zeros, *found.rest):
        told.extend(range(run.start, run.start + run.count))
    assert sorted(told) == list(range(len(new) // BLOCK_SIZE))


def test_a_block_is_found_wherever_it_moved() -> None:
    found = matched(A + B + C, B + D + C + A)

    assert found.copies == [Run(0, 1, 1), Run(2, 1, 2), Run(3, 1, 0)]
    assert found.rest == [Run(1, 1)]


def test_of_several_places_the_longest_run_is_taken() -> None:
    assert matched(A + D + A + B + C, A + B + C).copies == [Run(0, 3, 2)]


def test_of_equal_ones_the_one_that_carries_on_goes_first_then_the_own_place() -> None:
    assert matched(A + B + A + C, D + D + A).copies == [Run(2, 1, 2)]
    assert matched(A + D + B + B + B, A + C + B).copies == [Run(0, 1, 0), Run(2, 1, 2)]
    assert matched(B + A + D + B + A, D + C + A).copies == [Run(0, 1, 2), Run(2, 1, 4)]


def test_an_unchanged_image_is_one_copy() -> None:
    data = A + B + ZERO + C * 3 + D

    assert matched(data, data) == Matched(copies=[Run(0, 7, 0)], zeros=[], rest=[])


def test_long_runs_of_zeros_are_zeros_and_the_end_of_a_copy_is_none() -> None:
    data = A + ZERO * 32 + B + ZERO * 31 + C + ZERO

    found = matched(data, data)

    assert found.copies == [Run(0, 1, 0), Run(33, 33, 33)]
    assert found.zeros == [Run(1, 32), Run(66, 1)]


def test_more_places_than_are_tried_still_give_a_copy() -> None:
    found = matched((A + B) * (CANDIDATES_MAX + 3), C + A + B)

    assert found.copies == [Run(1, 2, 0)]


def test_a_hash_that_lies_makes_no_copy() -> None:
    old, new = A + B + ZERO, C + B + D

    check(old, new, matched(old, new, lies=True))
    check(new, old, matched(new, old, lies=True))


def test_beyond_the_limits_the_shortest_runs_are_left_to_the_rest() -> None:
    old = A + B + C
    new = B + D + A + B + D + C + D + ZERO + D + ZERO * 2

    found = matched(old, new, copies_max=1, zeros_max=1)

    check(old, new, found)
    assert found.copies == [Run(2, 2, 0)]
    assert found.zeros == [Run(9, 2)]


def test_the_table_tells_zeros_and_the_sha256() -> None:
    import hashlib

    data = A + ZERO + bytes(BLOCK_SIZE - 1) + b"\1"
    table = tabulate(chunks(data), workers=2)

    assert table.zero.tolist() == [False, True, False]
    assert table.sha256 == hashlib.sha256(data).digest()
    assert len(set(table.hashes.tolist())) == 3


@pytest.mark.parametrize("bit", [0, 29, 62, 63])
def test_the_hash_tells_where_a_bit_changed(bit: int) -> None:
    blocks = []
    for word in range(512):
        changed = bytearray(A)
        changed[word * 8 + bit // 8] ^= 1 << bit % 8
        blocks.append(bytes(changed))

    assert len(set(tabulate([b"".join(blocks)], workers=1).hashes.tolist())) == 512


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 6), min_size=1))
def test_every_block_of_any_image_is_told_once_and_truly(old: list[int], new: list[int]) -> None:
    kinds = [ZERO, A, B, C, D, image(1, seed=5), image(1, seed=6)]
    before, after = (b"".join(kinds[kind] for kind in each) for each in (old or [1], new))

    check(before, after, matched(before, after))
