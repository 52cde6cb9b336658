"""In which order the operations of a delta stand: one that keeps all of a node busy.

What is packed again takes long, on one core, and much memory; other operations are quick, and those
that copy or clear need no memory at all. A node makes them side by side where they stand side by
side, but notes its progress in their order: so slow ones stand among quick ones, evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Step = TypeVar("Step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What packing some blocks again takes.

    Attributes:
        unpacked: bytes that are packed.
        large: whether a part of a large frame is among them, which takes most of a node's memory.
    """

    unpacked: int
    large: bool


def ordered(
    steps: Sequence[Step],
    *,
    effort: Mapping[Step, Effort],
    size: Callable[[Step], int],
    light: Callable[[Step], bool],
) -> list[Step]:
    """Return steps in the order in which they shall stand; each kind stays in its own.

    The largest stand among those that need no memory, the others that are slow among the rest.

    Args:
        steps: in the order of the image.
        effort: of those that are packed again.
        size: bytes that a step writes.
        light: whether a step needs no memory.
    """
    slow = [step for step in steps if step in effort]
    quick = [step for step in steps if step not in effort]
    largest = [step for step in slow if effort[step].large]
    smaller = [step for step in slow if not effort[step].large]
    among = [step for step in quick if largest and light(step)]
    rest = [step for step in quick if not (largest and light(step))]
    return [*_spread(largest, among, effort, size), *_spread(smaller, rest, effort, size)]


def _spread(
    slow: Sequence[Step],
    quick: Sequence[Step],
    effort: Mapping[Step, Effort],
    size: Callable[[Step], int],
) -> list[Step]:
    """Return quick steps with slow ones among them, one of these first: it takes longest."""
    slow_total = sum(effort[step].unpacked for step in slow)
    quick_total = sum(map(size, quick))
    order: list[Step] = []
    left = list(reversed(quick))
    slow_done = quick_done = 0
    for step in slow:
        while left and quick_done * slow_total < slow_done * quick_total:
            quick_done += size(left[-1])
            order.append(left.pop())
        order.append(step)
        slow_done += effort[step].unpacked
    return [*order, *reversed(left)]
