from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.errors import WindowInvalidError
from updater.gates.window import WindowGate
from updater.windows import Windows, parse_length, read_window, read_windows

BERLIN: Final = ZoneInfo("Europe/Berlin")
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


@dataclass
class Written:
    """A window as in the settings."""

    start: str
    length: str
    timezone: str = ""


def windows(*rows: tuple[str, str], local: tzinfo = UTC) -> Windows:
    return read_windows([Written(start, length) for start, length in rows], local=local)


def berlin(text: str, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold)


class TestALength:
    @pytest.mark.parametrize(
        ("text", "minutes"),
        [
            ("90min", 90),
            ("1h30m", 90),  # as Go and locksmith write it
            ("1.5h", 90),
            ("1h 30min", 90),
            ("2h", 120),
            ("1 day", 1440),
            ("60s", 1),
            ("1w", 7 * 1440),
            ("5400000ms", 90),
        ],
    )
    def test_is_a_time_span_with_units(self, text: str, minutes: int) -> None:
        assert parse_length(text) == timedelta(minutes=minutes)

    @pytest.mark.parametrize(
        "text",
        ["", "4", "h", "4h30", "-4h", "4 fortnights", "1H", "1M", "infinity", "1..5h", " 4h"],
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(WindowInvalidError, match="is no time span such as"):
            parse_length(text)

    @pytest.mark.parametrize("text", ["59s", "0h", "7d 1s", "8d", "999999999w"])
    def test_that_helps_nobody_is_refused(self, text: str) -> None:
        with pytest.raises(WindowInvalidError, match="not within one minute and seven days"):
            parse_length(text)

    @pytest.mark.parametrize("text", ["9" * 5000 + "h", "1h" * 3000])
    def test_is_bounded(self, text: str) -> None:
        with pytest.raises(WindowInvalidError):
            parse_length(text)


class TestAWindow:
    def test_is_open_from_its_first_instant_to_before_its_last(self) -> None:
        window = windows(("Sun 02:00", "4h"))
        opens = datetime(2026, 11, 29, 2, tzinfo=UTC)
        tick = timedelta(microseconds=1)
        assert not window.is_open(opens - tick)
        assert window.is_open(opens)
        assert window.is_open(opens + 4 * HOUR - tick)
        assert not window.is_open(opens + 4 * HOUR)

    def test_may_cross_midnight_and_the_end_of_the_week(self) -> None:
        window = windows(("Sun 23:00", "3h"))
        assert window.is_open(datetime(2026, 11, 30, 1, 59, tzinfo=UTC))

    def test_lasts_as_long_as_it_says_when_the_clocks_skip_an_hour(self) -> None:
        window = windows(("Sun 01:00", "4h"), local=BERLIN)
        closes = window.closes_at(berlin("2026-03-29 01:30"))
        assert closes == berlin("2026-03-29 06:00")

    def test_lasts_as_long_as_it_says_when_an_hour_comes_twice(self) -> None:
        window = windows(("Sun 01:00", "4h"), local=BERLIN)
        assert window.closes_at(berlin("2026-10-25 02:30", fold=1)) == berlin("2026-10-25 04:00")

    def test_opens_once_in_the_hour_that_comes_twice(self) -> None:
        window = windows(("02:10", "15min"), local=BERLIN)
        assert window.is_open(berlin("2026-10-25 02:20"))
        assert not window.is_open(berlin("2026-10-25 02:20", fold=1))
        found = window.next_to_open(berlin("2026-10-25 02:00", fold=1))
        assert found is not None
        assert found[0] == berlin("2026-10-26 02:10")

    def test_does_not_open_at_a_time_that_the_clocks_skip(self) -> None:
        found = windows(("Sun 02:30", "1h"), local=BERLIN).next_to_open(berlin("2026-03-28 12:00"))
        assert found is not None
        assert found[0] == berlin("2026-04-05 02:30")

    def test_that_opens_every_second_for_a_week_is_told_without_counting(self) -> None:
        window = windows(("2026-01-01 *:*:*", "7d")).each[0]
        last = datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC)
        assert window.closes_at(last - HOUR / 2) == last - HOUR / 2 + 7 * DAY
        assert window.closes_at(last + DAY) == last + 7 * DAY

    @pytest.mark.parametrize("start", ["Sun 14:00", "sun 14:00", "SUN  14:0", " Sun 14:00 "])
    def test_takes_a_start_of_locksmith_with_the_same_meaning(self, start: str) -> None:
        window = read_window(Written(start, "1h30m"), local=BERLIN)
        now = berlin("2026-11-25 12:00")
        assert window.opens_at(now) == berlin("2026-11-29 14:00")

    def test_takes_a_daily_start_of_locksmith_without_leading_zeros(self) -> None:
        window = read_window(Written("9:5", "1.5h"), local=BERLIN)
        assert window.opens_at(berlin("2026-11-25 12:00")) == berlin("2026-11-26 09:05")

    def test_in_a_zone_of_its_own_opens_by_that_clock(self) -> None:
        for row in (Written("02:00", "1h", "Europe/Berlin"), Written("02:00 Europe/Berlin", "1h")):
            window = read_window(row, local=UTC)
            assert window.opens_at(berlin("2026-07-01 00:00")) == berlin("2026-07-01 02:00")

    def test_with_two_zones_is_refused(self) -> None:
        with pytest.raises(
            WindowInvalidError, match=r"two time zones: UTC in .* and Europe/Berlin"
        ):
            read_window(Written("02:00 UTC", "1h", "Europe/Berlin"), local=UTC)


class TestSeveralWindows:
    def test_are_open_while_one_is(self) -> None:
        both = windows(("Sat 02:00", "1h"), ("Sun 02:00", "1h"))
        for day, is_open in ((27, False), (28, True), (29, True), (30, False)):
            assert both.is_open(datetime(2026, 11, day, 2, 30, tzinfo=UTC)) is is_open

    def test_that_touch_close_together(self) -> None:
        both = windows(("02:00", "1h"), ("03:00", "1h"))
        assert both.closes_at(datetime(2026, 1, 1, 2, 30, tzinfo=UTC)) == datetime(
            2026, 1, 1, 4, tzinfo=UTC
        )

    def test_that_never_leave_a_gap_do_not_close(self) -> None:
        assert windows(("daily", "24h")).closes_at(datetime(2026, 1, 1, tzinfo=UTC)) is None

    def test_none_opens_where_there_is_none(self) -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert windows(("2020-01-01", "1h")).next_to_open(now) is None
        assert windows(("2020-01-01", "1h")).closes_at(now) is None


# A second opinion: every minute of three weeks, marked by reading the clock on the wall.

WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
STRETCH: Final = 21 * 24 * 60  # minutes
ZONES: Final = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC")
BEGINNINGS: Final = (date(2026, 3, 1), date(2026, 3, 20), date(2026, 10, 1), date(2026, 10, 20))

rows = st.lists(
    st.tuples(
        st.sampled_from([None, *range(7)]),
        st.integers(0, 23),
        st.sampled_from([0, 10, 30, 59]),
        st.integers(1, 7 * 1440 - 1) | st.integers(1, 90),
    ),
    min_size=1,
    max_size=3,
)


@functools.cache  # a few zones and beginnings, many examples
def walls(zone: ZoneInfo, begin: datetime) -> list[datetime]:
    """Return what the wall shows in every minute, from a week before on."""
    minutes = (begin + number * MINUTE for number in range(-7 * 1440, STRETCH))
    return [minute.astimezone(zone).replace(tzinfo=None, fold=0) for minute in minutes]


def by_the_minute(shows: Sequence[datetime], row: tuple[int | None, int, int, int]) -> list[bool]:
    """Mark every minute: a minute that the wall shows for the first time may open the window."""
    weekday, hour, minute, length = row
    marks = [False] * STRETCH
    shown: set[datetime] = set()
    for number, wall in enumerate(shows, -7 * 1440):
        fits = (wall.hour, wall.minute) == (hour, minute) and weekday in {None, wall.weekday()}
        if fits and wall not in shown:
            marks[max(number, 0) : max(number + length, 0)] = [True] * (
                max(number + length, 0) - max(number, 0)
            )
        shown.add(wall)
    return marks[:STRETCH]


@settings(deadline=None, max_examples=40)
@given(rows, st.sampled_from(ZONES), st.sampled_from(BEGINNINGS), st.data())
def test_windows_are_open_as_marked_by_the_minute(
    some: list[tuple[int | None, int, int, int]], zone: str, day: date, data: st.DataObject
) -> None:
    local = ZoneInfo(zone)
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    shows = walls(local, begin)
    each = [by_the_minute(shows, row) for row in some]
    marks = [any(column) for column in zip(*each, strict=True)]
    found = windows(
        *(
            (f"{WEEKDAYS[w] + ' ' if w is not None else ''}{h}:{m}", f"{n}min")
            for w, h, m, n in some
        ),
        local=local,
    )
    for number in data.draw(st.lists(st.integers(0, STRETCH - 1), min_size=20, max_size=20)):
        now = begin + number * MINUTE + timedelta(seconds=data.draw(st.sampled_from([0, 59])))
        assert found.is_open(now) is marks[number]
        rest = marks[number:]
        verdict = WindowGate(found).verdict(now)
        if not marks[number] and True in rest:
            opens = begin + (number + rest.index(True)) * MINUTE
            opening = found.next_to_open(now)
            assert opening is not None
            assert opening[0] == opens
            assert (verdict.is_open, verdict.opens_at) == (False, opens)
        if marks[number] and False in rest:
            assert found.closes_at(now) == begin + (number + rest.index(False)) * MINUTE
            assert (verdict.is_open, verdict.opens_at) == (True, None)
