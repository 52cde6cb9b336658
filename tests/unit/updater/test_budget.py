"""What may still be fetched, and what was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.budget import (
    DayBudgetError,
    Limits,
    MeteredLinkError,
    UpdateBudgetError,
    allowances,
    charged,
    day_of,
    tightest,
)
from updater.state import Traffic

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def test_without_limits_nothing_is_limited() -> None:
    assert allowances(Limits(), Traffic(version_bytes=9), version="", now=NOON) == ()
    assert tightest(()) is None


def test_each_limit_counts_what_it_is_about() -> None:
    traffic = Traffic(day="2026-11-28", day_bytes=60, version="2.0.0", version_bytes=30)
    limits = Limits(update=100, day=100, metered=10)
    found = allowances(limits, traffic, version="2.0.0", now=NOON)
    assert [(one.error, one.left) for one in found] == [
        (MeteredLinkError, 0),
        (UpdateBudgetError, 70),
        (DayBudgetError, 40),
    ]
    other = allowances(limits, traffic, version="3.0.0", now=NOON + timedelta(days=1))
    assert [one.left for one in other] == [10, 100, 100]


def test_a_refusal_says_cost_limit_and_rest() -> None:
    (limit,) = allowances(
        Limits(update=100_000_000),
        Traffic(version="2", version_bytes=60_000_000),
        version="2",
        now=NOON,
    )
    assert str(limit.refusal("the full payload", 80_000_000)) == (
        "the full payload costs 80.0 MB; download.max_mib_per_update allows 100.0 MB,"
        " 40.0 MB are left"
    )


def test_days_are_those_of_utc() -> None:
    assert day_of(datetime(2026, 11, 28, 1, tzinfo=timezone(timedelta(hours=5)))) == "2026-11-27"


def test_counting_twice_is_the_same_as_once() -> None:
    once = charged(Traffic(), version="2.0.0", downloaded=40, now=NOON)
    assert (once.day_bytes, once.version_bytes) == (40, 40)
    assert charged(once, version="2.0.0", downloaded=40, now=NOON) == once


def test_what_came_since_is_added_to_the_day_on_which_it_is_counted() -> None:
    once = charged(Traffic(), version="2.0.0", downloaded=40, now=NOON)
    later = charged(once, version="2.0.0", downloaded=70, now=NOON + timedelta(days=1))
    assert (later.day_bytes, later.version_bytes) == (30, 70)


def test_a_journal_that_began_anew_is_counted_from_its_beginning() -> None:
    once = charged(Traffic(), version="2.0.0", downloaded=40, now=NOON)
    anew = charged(once, version="2.0.0", downloaded=15, now=NOON)
    assert (anew.day_bytes, anew.version_bytes) == (55, 55)


def test_another_version_has_its_own_account_within_the_day() -> None:
    once = charged(Traffic(), version="2.0.0", downloaded=40, now=NOON)
    other = charged(once, version="3.0.0", downloaded=10, now=NOON)
    assert (other.day_bytes, other.version_bytes) == (50, 10)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=20))
def test_no_byte_is_counted_twice_or_forgotten(pieces: list[int]) -> None:
    traffic, total = Traffic(), 0
    for piece in pieces:
        total += piece
        traffic = charged(traffic, version="2.0.0", downloaded=total, now=NOON)
    assert (traffic.day_bytes, traffic.version_bytes) == (total, total)


@pytest.mark.parametrize("kind", [UpdateBudgetError, DayBudgetError, MeteredLinkError])
def test_each_refusal_has_a_hint_that_names_the_setting(kind: type[UpdateBudgetError]) -> None:
    assert "download." in kind.hint
