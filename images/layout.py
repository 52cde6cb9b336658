"""Which blocks an operation of a full payload makes: gathered by age, oldest first. Pure.

The age of a block is the number of earlier releases, from the newest back without a break, that
have it. A node at one of them holds every operation of the ages that are old enough, and needs
all others whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

ZERO_RUN_MIN: Final = 16  # blocks of zeros that are an operation: fewer pack to nothing anyway
RUNS_MAX: Final = 30_000  # runs of one age in an image: some 10 bytes each in the manifest
_CLEARED: Final = -1  # the age of blocks in long runs of zeros

Run = tuple[int, int]  # first block, number of blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An operation to be: the blocks that it makes, and their age, None where it clears."""

    runs: tuple[Run, ...]
    age: int | None

    @property
    def blocks(self) -> int:
        """Return how many blocks it makes."""
        return sum(count for _, count in self.runs)


def lay_out(
    ages: Sequence[int],
    zeros: Sequence[int],
    *,
    blocks_each: int,
    cleared_each: int,
    runs_max: int = RUNS_MAX,
) -> list[Planned]:
    """Return the operations that make an image: first those that clear, then by age.

    Args:
        ages: of each block.
        zeros: for each block whether it is all zeros; such a block has no age of its own.
        blocks_each: blocks of an operation at most.
        cleared_each: blocks that one operation clears at most.
        runs_max: when there are more runs of one age, short ones join a younger neighbour.
    """
    runs = _bounded(list(_runs(_settled(ages, zeros))), runs_max)
    result = _cut(None, (run[:2] for run in runs if run[2] == _CLEARED), cleared_each)
    for age in sorted({age for _, _, age in runs if age != _CLEARED}, reverse=True):
        result += _cut(age, (run[:2] for run in runs if run[2] == age), blocks_each)
    return result


def _settled(ages: Sequence[int], zeros: Sequence[int]) -> list[int]:
    """Return the ages, those of zero blocks settled: cleared, or that of the block before."""
    result = list(ages)
    start = 0
    for end in range(1, len(result) + 1):
        if end < len(result) and bool(zeros[end]) == bool(zeros[start]):
            continue
        if zeros[start]:
            after = result[end] if end < len(result) else 0
            own = result[start - 1] if start else after
            age = _CLEARED if end - start >= ZERO_RUN_MIN else own
            result[start:end] = [age] * (end - start)
        start = end
    return result


def _runs(ages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first block, number of blocks, age)."""
    start = 0
    for block in range(1, len(ages) + 1):
        if block == len(ages) or ages[block] != ages[start]:
            yield start, block - start, ages[start]
            start = block


def _bounded(runs: list[tuple[int, int, int]], most: int) -> list[tuple[int, int, int]]:
    """Return no more runs than `most`, if need be by calling short old runs younger.

    Never the other way: a new block among old ones would be missing where they are held.
    """
    shortest = 1
    while len(runs) > most and shortest < max(count for _, count, _ in runs):
        shortest *= 2
        edged = [(0, 0, _CLEARED), *runs, (0, 0, _CLEARED)]
        ages = [age for _, _, age in edged]
        for number in range(1, len(edged) - 1):
            _, count, age = edged[number]
            beside = [a for a in (ages[number - 1], ages[number + 1]) if a != _CLEARED]
            if age != _CLEARED and count < shortest and beside:
                ages[number] = min(age, *beside)
        runs = _joined((run[0], run[1], age) for run, age in zip(edged, ages, strict=True))
    return runs


def _joined(runs: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    result: list[tuple[int, int, int]] = []
    for start, count, age in runs:
        if not count:
            continue
        if result and result[-1][2] == age:
            result[-1] = (result[-1][0], result[-1][1] + count, age)
        else:
            result.append((start, count, age))
    return result


def _cut(age: int | None, runs: Iterable[Run], most: int) -> list[Planned]:
    """Return operations of at most `most` blocks each, all but the last filled."""
    result: list[Planned] = []
    held: list[Run] = []
    room = most
    for start, count in runs:
        while count:
            taken = min(count, room)
            held.append((start, taken))
            start, count, room = start + taken, count - taken, room - taken  # what is left
            if not room:
                result.append(Planned(runs=tuple(held), age=age))
                held, room = [], most
    if held:
        result.append(Planned(runs=tuple(held), age=age))
    return result


def dictionary_of(number: int, first: int, *, group: int, count: int) -> range:
    """Return the operations whose output is the dictionary of operation `number`.

    All operations of a group have the same: those just before the group. So none waits for another
    of its group, and what is known of a dictionary serves them all. Only in the first group, before
    which there is nothing, each has all before it.

    Args:
        number: of the operation in its part.
        first: of the part's first operation that makes something.
        group: operations of a group.
        count: operations that are a dictionary, at most.
    """
    if number < first + group:
        return range(first, number)
    end = number - (number - first) % group
    return range(max(first, end - count), end)


def ages_of(planned: Sequence[Planned]) -> list[int]:
    """Return how many operations there are of each age, oldest first; cleared ones are oldest."""
    edges = [0]
    for number, (one, other) in enumerate(pairwise(planned), start=1):
        if one.age is not None and one.age != other.age:
            edges.append(number)
    edges.append(len(planned))
    return [end - start for start, end in pairwise(edges)]
