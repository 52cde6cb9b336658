"""A limit of bytes per second, as arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.token_bucket import BURST_SECS, Bucket, full, take

RATE = 100_000.0


def test_a_burst_comes_at_once_and_what_is_more_waits() -> None:
    bucket = full(RATE, now=50.0)
    bucket, wait = take(bucket, bucket.burst, 50.0)
    assert wait == 0
    bucket, wait = take(bucket, 10_000, 50.0)
    assert wait == pytest.approx(0.1)


def test_a_long_pause_saves_up_no_more_than_a_burst() -> None:
    bucket, _ = take(full(RATE, now=0.0), 1, 0.0)
    bucket, wait = take(bucket, bucket.burst, 1_000_000.0)
    assert wait == 0
    assert take(bucket, 1000, 1_000_000.0)[1] == pytest.approx(0.01)


@pytest.mark.parametrize("now", [0.0, -5.0])
def test_a_clock_that_stands_or_goes_back_adds_nothing(now: float) -> None:
    bucket, _ = take(full(RATE, now=10.0), 25_000, 10.0)
    assert take(bucket, 1000, now)[1] == pytest.approx(0.01)


def test_a_slow_link_still_reads_whole_pages() -> None:
    assert full(8192, now=0).burst == 4096


@settings(deadline=None)
@given(
    st.floats(8192, 1e9),
    st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 5)), min_size=1, max_size=60),
)
def test_in_any_stretch_no_more_comes_than_the_rate_and_a_burst(
    rate: float, steps: list[tuple[int, float]]
) -> None:
    """Whoever waits as told, however late, never gets ahead of the rate."""
    bucket: Bucket = full(rate, now=0.0)
    now, came = 0.0, 0
    for size, late in steps:
        piece = min(size, bucket.burst)
        bucket, wait = take(bucket, piece, now)
        came += piece
        now += wait + late
        allowed = rate * now + max(4096, rate * BURST_SECS)
        assert came <= allowed * (1 + 1e-9) + 1
