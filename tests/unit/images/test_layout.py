from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from images.layout import ZERO_RUN_MIN, Planned, ages_of, dictionary_of, lay_out

IMAGES = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 40)), min_size=1, max_size=30
)


def blocks_of(planned: list[Planned]) -> list[int]:
    return [
        block
        for one in planned
        for start, count in one.runs
        for block in range(start, start + count)
    ]


def expanded(runs: list[tuple[int, bool, int]]) -> tuple[list[int], list[int]]:
    ages = [age for age, _, count in runs for _ in range(count)]
    zeros = [int(zero) for _, zero, count in runs for _ in range(count)]
    return ages, zeros


@settings(max_examples=60, deadline=None)
@given(runs=IMAGES, most=st.integers(1, 12))
def test_each_block_is_made_once_by_operations_that_are_small_enough(
    runs: list[tuple[int, bool, int]], most: int
) -> None:
    ages, zeros = expanded(runs)
    planned = lay_out(ages, zeros, blocks_each=16, cleared_each=20, runs_max=most)
    assert sorted(blocks_of(planned)) == list(range(len(ages)))
    for one in planned:
        assert 0 < one.blocks <= (20 if one.age is None else 16)


@settings(max_examples=60, deadline=None)
@given(runs=IMAGES, most=st.integers(1, 12))
def test_a_block_is_never_among_older_ones(runs: list[tuple[int, bool, int]], most: int) -> None:
    """Or a node that holds these would lack it."""
    ages, zeros = expanded(runs)
    for one in lay_out(ages, zeros, blocks_each=16, cleared_each=20, runs_max=most):
        for block in blocks_of([one]):
            assert zeros[block] if one.age is None else zeros[block] or ages[block] >= one.age


@settings(max_examples=60, deadline=None)
@given(runs=IMAGES)
def test_what_clears_comes_first_and_new_blocks_last(runs: list[tuple[int, bool, int]]) -> None:
    planned = lay_out(*expanded(runs), blocks_each=16, cleared_each=20)
    order = [99 if one.age is None else one.age for one in planned]
    assert order == sorted(order, reverse=True)
    assert sum(ages_of(planned)) == len(planned)


def test_one_age_is_cut_in_order() -> None:
    planned = lay_out([0] * 10, [0] * 10, blocks_each=4, cleared_each=4)
    assert [one.runs for one in planned] == [((0, 4),), ((4, 4),), ((8, 2),)]
    assert ages_of(planned) == [3]


def test_operations_of_an_age_are_filled_from_everywhere() -> None:
    ages = [0, 1] * 6
    planned = lay_out(ages, [0] * 12, blocks_each=4, cleared_each=4)
    assert [one.age for one in planned] == [1, 1, 0, 0]
    assert planned[0].runs == ((1, 1), (3, 1), (5, 1), (7, 1))
    assert ages_of(planned) == [2, 2]


def test_short_runs_of_zeros_stay_with_their_neighbours() -> None:
    zeros = [0] * 5 + [1] * (ZERO_RUN_MIN - 1) + [0] * 5
    planned = lay_out([0] * len(zeros), zeros, blocks_each=256, cleared_each=256)
    assert [one.runs for one in planned] == [((0, len(zeros)),)]


def test_long_runs_of_zeros_are_cleared() -> None:
    zeros = [0] * 5 + [1] * ZERO_RUN_MIN + [0] * 5
    planned = lay_out([0] * len(zeros), zeros, blocks_each=256, cleared_each=256)
    assert planned[0] == Planned(runs=((5, ZERO_RUN_MIN),), age=None)
    assert planned[1].runs == ((0, 5), (5 + ZERO_RUN_MIN, 5))


def test_too_many_runs_make_old_blocks_young() -> None:
    chance = random.Random(3)
    ages = [chance.randrange(2) for _ in range(2000)]
    planned = lay_out(ages, [0] * 2000, blocks_each=256, cleared_each=256, runs_max=100)
    assert sum(len(one.runs) for one in planned) <= 100 + len(planned)


def test_a_group_has_one_dictionary_just_before_it() -> None:
    begun = [range(2, 2), range(2, 3), range(2, 4), range(2, 5)]
    wanted = begun + [range(4, 6)] * 4 + [range(8, 10)] * 4
    found = [dictionary_of(number, 2, group=4, count=2) for number in range(2, 14)]
    assert found == wanted
