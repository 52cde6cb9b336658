"""What may still be fetched, and what was."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.budget import (
    Allowance,
    DayBudgetError,
    Limits,
    MeteredLinkError,
    UpdateBudgetError,
    allowances,
    charged,
    day_of,
    days_needed,
    of_failed,
    require_price,
    tightest,
    today,
)
from updater.state import Traffic

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def test_without_limits_nothing_is_limited() -> None:
    assert allowances(Limits(), Traffic(version_bytes=9), version="", now=NOON) == ()
    assert tightest(()) is None


def test_each_limit_counts_what_it_is_about() -> None:
    traffic = Traffic(
        day="2026-11-28", day_bytes=60, version="2.0.0", version_bytes=30, metered_bytes=4
    )
    limits = Limits(update=100, day=100, metered=10)
    found = allowances(limits, traffic, version="2.0.0", now=NOON)
    assert [(one.error, one.left, one.renewed) for one in found] == [
        (MeteredLinkError, 6, False),
        (UpdateBudgetError, 70, False),
        (DayBudgetError, 40, True),
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


class TestDays:
    """A payload may be spread over days; other limits must hold all of it."""

    DAY = Allowance(error=DayBudgetError, limit=100, spent=40, words="a day", renewed=True)
    UPDATE = Allowance(error=UpdateBudgetError, limit=500, spent=0, words="an update")

    @pytest.mark.parametrize(
        ("cost", "days"), [(0, 0), (60, 0), (61, 1), (140, 1), (141, 2), (500, 5)]
    )
    def test_it_takes_as_many_more_as_are_needed(self, cost: int, days: int) -> None:
        assert days_needed((self.DAY, self.UPDATE), "it", cost, step=10) == days

    def test_other_limits_must_hold_all_of_it(self) -> None:
        with pytest.raises(UpdateBudgetError):
            days_needed((self.DAY, self.UPDATE), "it", 501, step=10)

    def test_where_there_is_less_than_a_step_today_it_waits_and_says_for_how_long(self) -> None:
        with pytest.raises(DayBudgetError, match=r"it will be whole in 6 days \(UTC\)"):
            days_needed((self.DAY,), "it", 234, step=61)
        assert days_needed((self.DAY,), "it", 60, step=61) == 0  # all of it is a step

    def test_where_no_day_has_a_step_it_is_refused(self) -> None:
        with pytest.raises(DayBudgetError, match="in one day to get on"):
            days_needed((self.DAY,), "it", 500, step=101)

    def test_what_is_known_after_a_part_is_begun_when_that_is_within(self) -> None:
        assert days_needed((self.UPDATE,), "it", 9000, step=10, known_after=500) == 0
        with pytest.raises(UpdateBudgetError):
            days_needed((self.UPDATE,), "it", 9000, step=10, known_after=501)

    def test_what_it_then_costs_is_compared_again_but_not_with_the_day(self) -> None:
        require_price((self.DAY, self.UPDATE), "it", 500)
        with pytest.raises(UpdateBudgetError):
            require_price((self.DAY, self.UPDATE), "it", 501)


class TestMeteredBytes:
    def test_only_those_that_came_over_a_metered_link_count_for_it(self) -> None:
        free = charged(Traffic(), version="2", downloaded=70, now=NOON)
        both = charged(
            msgspec.structs.replace(free, metered=True), version="2", downloaded=100, now=NOON
        )
        assert (both.version_bytes, both.metered_bytes) == (100, 30)
        (limit,) = allowances(Limits(metered=50), both, version="2", now=NOON)
        assert limit.left == 20


def test_what_failed_and_the_full_payload_cost_as_much_as_it_and_a_thousandth() -> None:
    limit = of_failed(400, full_size=1000)
    assert (limit.limit, limit.left) == (1001, 601)


def at(day: str) -> datetime:
    return datetime.fromisoformat(f"{day}T12:00:00+00:00")


def look(traffic: Traffic, *days: str) -> Traffic:
    """Return the account after the clock showed these days, one after another."""
    for day in days:
        traffic = today(traffic, at(day))
    return traffic


class TestAClockThatIsWrong:
    SPENT = Traffic(day="2026-11-28", day_bytes=100)

    def test_a_day_in_the_far_future_does_not_hold_it_for_ever(self) -> None:
        spent = msgspec.structs.replace(self.SPENT, day="2099-01-01")
        assert look(spent, "2026-11-28").day_bytes == 100
        assert look(spent, "2026-11-28", "2026-11-29").day_bytes == 0
        assert look(spent, "2026-11-28", "2026-12-05").day_bytes == 0  # it was off for a week

    def test_a_clock_that_goes_back_brings_nothing_back(self) -> None:
        assert look(self.SPENT, "2026-11-27").day_bytes == 100
        assert look(self.SPENT, "2026-11-27", "2026-11-28").day_bytes == 100

    def test_a_machine_without_a_clock_of_its_own_gets_no_bytes_by_a_restart(self) -> None:
        """It shows 1970 until it has asked for the time."""
        traffic = self.SPENT
        for _ in range(9):
            traffic = look(traffic, "1970-01-01", "2026-11-28")
            assert traffic.day_bytes == 100
        assert look(traffic, "1970-01-01", "2026-11-29").day_bytes == 0

    def test_a_clock_that_jumps_to_and_fro_brings_one_day_more_at_most(self) -> None:
        days = 0
        traffic = self.SPENT
        for _ in range(50):
            for day in ("2099-01-01", "2026-11-28", "1970-01-01"):
                traffic = look(traffic, day)
                if not traffic.day_bytes:
                    days += 1
                    traffic = charged(
                        traffic, version="2", downloaded=traffic.counted + 100, now=at(day)
                    )
        assert days == 1

    def test_a_day_that_is_none_harms_nobody(self) -> None:
        spent = msgspec.structs.replace(self.SPENT, day="9999-99-99", back="2026-99-99")
        assert look(spent, "2026-11-28", "2026-11-29").day_bytes == 0

    @settings(deadline=None)
    @given(st.lists(st.dates(min_value=date(1970, 1, 1), max_value=date(2200, 1, 1)), max_size=30))
    def test_whatever_it_shows_two_days_that_pass_bring_bytes_again(
        self, shown: list[date]
    ) -> None:
        traffic = look(self.SPENT, *(day.isoformat() for day in shown))
        last = shown[-1] if shown else date(2026, 11, 28)
        after = look(
            traffic, *((last + timedelta(days=number)).isoformat() for number in range(1, 3))
        )
        assert after.day_bytes == 0
