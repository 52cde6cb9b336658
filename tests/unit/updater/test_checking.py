from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.schedule import BACKOFF_MAX, SERVER_HINT_MAX, first_check, longest_pause, next_check
from updater.settings import ServerSettings

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
UNTIMED: Final = settings(deadline=None)

intervals = st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=31))
shares = st.floats(min_value=0, max_value=1)
chances = st.floats(min_value=0, max_value=1, exclude_max=True)
failure_counts = st.integers(min_value=0, max_value=10**9)


def pause(
    interval: timedelta, *, failures: int = 0, jitter_share: float = 0.0, chance: float = 0.5
) -> timedelta:
    due = next_check(
        NOW, interval=interval, jitter_share=jitter_share, chance=chance, failures=failures
    )
    return due - NOW


def test_without_failures_and_jitter_it_is_the_interval() -> None:
    assert pause(45 * MINUTE) == 45 * MINUTE


@pytest.mark.parametrize(
    ("failures", "minutes"), [(0, 10), (1, 20), (2, 40), (3, 80), (4, 160), (5, 240), (99, 240)]
)
def test_each_failure_doubles_it_up_to_four_hours(failures: int, minutes: int) -> None:
    assert pause(10 * MINUTE, failures=failures) == minutes * MINUTE


def test_an_interval_that_is_longer_than_any_back_off_stays_as_it_is() -> None:
    assert pause(timedelta(days=1), failures=5) == timedelta(days=1)


def test_jitter_spreads_the_nodes_evenly_around_it() -> None:
    chances = [number / 100 for number in range(100)]
    pauses = [pause(100 * MINUTE, jitter_share=0.1, chance=chance) for chance in chances]
    assert min(pauses) == 90 * MINUTE
    assert 109 * MINUTE < max(pauses) < 110 * MINUTE
    assert len(set(pauses)) == 100


@UNTIMED
@given(intervals, shares, chances, failure_counts)
def test_it_stays_within_its_bounds(
    interval: timedelta, share: float, chance: float, failures: int
) -> None:
    found = pause(interval, failures=failures, jitter_share=share, chance=chance)
    second = timedelta(seconds=1)  # of rounding
    assert timedelta(0) <= found
    assert interval * (1 - share) - second <= found
    assert found <= max(interval, BACKOFF_MAX) * (1 + share) + second


@UNTIMED
@given(intervals, shares, chances, failure_counts)
def test_no_pause_is_longer_than_what_is_taken_for_a_wrong_clock(
    interval: timedelta, share: float, chance: float, failures: int
) -> None:
    """Or a node would check all the time."""
    server = ServerSettings(poll_interval_secs=interval.total_seconds(), poll_jitter_share=share)
    for asked in (interval, max(interval, SERVER_HINT_MAX)):
        found = pause(asked, failures=failures, jitter_share=share, chance=chance)
        assert found <= longest_pause(server)


@UNTIMED
@given(intervals, failure_counts)
def test_more_failures_never_make_it_shorter(interval: timedelta, failures: int) -> None:
    assert pause(interval, failures=failures) <= pause(interval, failures=failures + 1)


def test_the_first_check_of_a_boot_is_jittered_and_the_same_for_the_whole_boot() -> None:
    server = ServerSettings(first_check_secs=100, poll_jitter_share=0.2)
    boots = [f"boot-{number}" for number in range(200)]
    times = [first_check(server, boot).total_seconds() for boot in boots]
    assert times == [first_check(server, boot).total_seconds() for boot in boots]
    assert 80 <= min(times) < 85
    assert 115 < max(times) <= 120
