from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from updater.ranges import coalesced

SPANS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 300)), max_size=60).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


def test_what_touches_or_is_near_is_one_request() -> None:
    assert coalesced([(0, 10), (10, 20), (25, 30), (100, 110)], gap=5) == [(0, 30), (100, 110)]


def test_the_gap_itself_is_the_limit() -> None:
    assert coalesced([(0, 10), (16, 20)], gap=5) == [(0, 10), (16, 20)]


def test_there_are_never_too_many_requests() -> None:
    spans = [(n * 1000, n * 1000 + 1) for n in range(100)]
    assert len(coalesced(spans, gap=0, most=7)) <= 7


def test_nothing_is_nothing() -> None:
    assert coalesced([(5, 5)]) == []


@given(spans=SPANS, gap=st.integers(0, 200), most=st.integers(1, 20))
def test_every_byte_is_covered_once_and_in_order(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    joined = coalesced(spans, gap=gap, most=most)
    assert len(joined) <= most
    assert all(one[1] < two[0] for one, two in pairwise(joined))
    assert all(start < end for start, end in joined)
    wanted = [span for span in spans if span[0] < span[1]]
    assert all(any(s <= start and end <= e for s, e in joined) for start, end in wanted)
    if wanted:
        assert joined[0][0] == min(wanted)[0]
        assert joined[-1][1] == max(end for _, end in wanted)
