"""Work in threads whose results keep their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from images.lanes import cores, in_order


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(in_order(lambda n: n * n, range(100), workers=4)) == [
        (n, n * n) for n in range(100)
    ]


def test_few_items_are_held_at_once() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = in_order(lambda number: number, items(), workers=2)
    next(results)

    assert taken <= 3 * 2
    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_failure_is_raised_when_its_turn_comes() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise ValueError(f"item {number}")
        return number

    done: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        done.extend(item for item, _ in in_order(work, range(100), workers=3))

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_there_is_a_core() -> None:
    assert cores() >= 1
