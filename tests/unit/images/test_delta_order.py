"""Slow operations of a delta stand among quick ones, each kind in its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from images.delta_order import Effort, ordered

MIB = 1024 * 1024


def order(
    steps: Sequence[str], sizes: Mapping[str, int], effort: Mapping[str, Effort] | None = None
) -> str:
    """Return the order of steps; those in capitals need memory."""
    made = ordered(
        steps, effort=effort or {}, size=lambda step: sizes.get(step, MIB), light=str.islower
    )
    return "".join(made)


def packs(mib: int, *, large: bool = False) -> Effort:
    return Effort(unpacked=mib * MIB, large=large)


def test_without_slow_ones_all_stays_as_it_is() -> None:
    assert order("aBcDe", {}) == "aBcDe"


def test_slow_ones_stand_evenly_by_what_they_take() -> None:
    assert order("aXbcdYZ", {}, {"X": packs(1), "Y": packs(2), "Z": packs(1)}) == "XaYbcZd"
    assert order("XYab", {"a": 9 * MIB}, {"X": packs(1), "Y": packs(1)}) == "XaYb"
    assert order("XY", {}, {"X": packs(1), "Y": packs(1)}) == "XY"


def test_the_largest_stand_among_those_that_need_no_memory() -> None:
    effort = {"X": packs(16, large=True), "Y": packs(16, large=True), "Z": packs(8)}
    assert order("BaXcYdZeF", {}, effort) == "XacYdeZBF"


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), max_size=30, unique=True)
)
def test_no_step_is_lost_and_each_kind_keeps_its_order(kinds: list[tuple[int, bool, bool]]) -> None:
    steps = list(range(len(kinds)))
    effort = {
        step: Effort(unpacked=kinds[step][0] * MIB, large=kinds[step][2])
        for step in steps
        if kinds[step][0] > 10
    }
    made = ordered(steps, effort=effort, size=lambda step: step, light=lambda step: kinds[step][1])
    assert sorted(made) == steps
    for kind in (True, False):
        slow = [step for step in made if step in effort and effort[step].large is kind]
        assert slow == sorted(slow)
        quick = [step for step in made if step not in effort and kinds[step][1] is kind]
        assert quick == sorted(quick)
