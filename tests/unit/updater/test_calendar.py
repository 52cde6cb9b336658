from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater.calendar import Calendar
from updater.calendar_syntax import TEXT_MAX, parse_calendar
from updater.errors import EXIT_USAGE, WindowInvalidError

BERLIN: Final = ZoneInfo("Europe/Berlin")
NEW_YORK: Final = ZoneInfo("America/New_York")
LORD_HOWE: Final = ZoneInfo("Australia/Lord_Howe")

# systemd.time(7), "Examples for valid timestamps and their normalized form", all of them.
DOCUMENTED: Final = """\
Sat,Thu,Mon..Wed,Sat..Sun → Mon..Thu,Sat,Sun *-*-* 00:00:00
Mon,Sun 12-*-* 2,1:23 → Mon,Sun 2012-*-* 01,02:23:00
Wed *-1 → Wed *-*-01 00:00:00
Wed..Wed,Wed *-1 → Wed *-*-01 00:00:00
Wed, 17:48 → Wed *-*-* 17:48:00
Wed..Sat,Tue 12-10-15 1:2:3 → Tue..Sat 2012-10-15 01:02:03
*-*-7 0:0:0 → *-*-07 00:00:00
10-15 → *-10-15 00:00:00
monday *-12-* 17:00 → Mon *-12-* 17:00:00
Mon,Fri *-*-3,1,2 *:30:45 → Mon,Fri *-*-01,02,03 *:30:45
12,14,13,12:20,10,30 → *-*-* 12,13,14:10,20,30:00
12..14:10,20,30 → *-*-* 12..14:10,20,30:00
mon,fri *-1/2-1,3 *:30:45 → Mon,Fri *-01/2-01,03 *:30:45
03-05 08:05:40 → *-03-05 08:05:40
08:05:40 → *-*-* 08:05:40
05:40 → *-*-* 05:40:00
Sat,Sun 12-05 08:05:40 → Sat,Sun *-12-05 08:05:40
Sat,Sun 08:05:40 → Sat,Sun *-*-* 08:05:40
2003-03-05 05:40 → 2003-03-05 05:40:00
05:40:23.4200004/3.1700005 → *-*-* 05:40:23.420000/3.170001
2003-02..04-05 → 2003-02..04-05 00:00:00
2003-03-05 05:40 UTC → 2003-03-05 05:40:00 UTC
2003-03-05 → 2003-03-05 00:00:00
03-05 → *-03-05 00:00:00
minutely → *-*-* *:*:00
hourly → *-*-* *:00:00
daily → *-*-* 00:00:00
daily UTC → *-*-* 00:00:00 UTC
monthly → *-*-01 00:00:00
weekly → Mon *-*-* 00:00:00
weekly Pacific/Auckland → Mon *-*-* 00:00:00 Pacific/Auckland
yearly → *-01-01 00:00:00
annually → *-01-01 00:00:00
quarterly → *-01,04,07,10-01 00:00:00
semiannually → *-01,07-01 00:00:00
*:2/3 → *-*-* *:02/3:00
*-02~03 → *-02~03 00:00:00
Mon *-05~07/1 → Mon *-05~07/1 00:00:00
"""


def local(text: str, zone: ZoneInfo, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def elapses(calendar: Calendar, base: datetime, count: int) -> list[str]:
    """Return the next times on the zone's clock, with the offset."""
    found: list[str] = []
    at: datetime | None = base
    for _ in range(count):
        assert at is not None
        at = calendar.next_after(at)
        assert at is not None
        found.append(f"{at.astimezone(calendar.zone):%a %Y-%m-%d %H:%M:%S%z}")
    return found


class TestWhatIsWritten:
    @pytest.mark.parametrize("row", DOCUMENTED.splitlines())
    def test_has_the_normalised_form_of_the_manual(self, row: str) -> None:
        text, normal = row.split(" → ")
        calendar = parse_calendar(text, local=BERLIN)
        assert str(calendar) == normal
        assert parse_calendar(normal, local=BERLIN) == calendar

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "nothing is written, at the end"),
            ("Sunn 02:00", "a number is missing, at 'Sunn 02:00'"),
            ("Sun..Mon 02:00", "a range of weekdays begins before it ends, at ' 02:00'"),
            ("Mon..Wed..Fri", "a range of weekdays has two ends, at 'Fri'"),
            ("Mon.. 10:00", "the range of weekdays has no end, at ' 10:00'"),
            ("Mon.Tue", "a range is written with two dots, at '.Tue'"),
            ("Mon,5", "a weekday is missing, at '5'"),
            ("24:00", "hour 24 is not within 0..23, at '24:00'"),
            ("12:60", "minute 60 is not within 0..59, at '60'"),
            ("12:00:60", "second 60 is not within 0..59, at '60'"),
            ("*-13-01", "month 13 is not within 1..12, at '13-01'"),
            ("*-*-0", "day 0 is not within 1..31, at '0'"),
            ("2200-01-01", "year 2200 is not within 1970..2199, at '2200-01-01'"),
            ("*-*~29", "day before the end of the month 29 is not within 1..28, at '29'"),
            ("*~02-01", "~ stands before the day, which is last, at '-01'"),
            ("12", "a time is written hour:minute or hour:minute:second, at the end"),
            ("12-", "a number is missing, at the end"),
            ("1-2-3-4", "a date is written year-month-day or month-day, at '-4'"),
            ("*:0/0", "a repetition of 0 never comes, at '0'"),
            ("*:50/20", "this range or repetition has only one minute, at '50/20'"),
            ("*:20..10", "this range or repetition has only one minute, at '20..10'"),
            ("*:*:5..5", "a range of seconds has at least two, at '5..5'"),
            ("*:*:5.", "a fraction has digits, at '.'"),
            ("12:00x", "unexpected character, at 'x'"),
            ("12:00 ", "nothing may follow the time but a time zone, at ' '"),
            ("1234567890:00", "the number is too long, at '1234567890:00'"),
            ("@1395716396", "Unix seconds are not taken here"),
            ("12:00 Mars/Olympus", "time zone 'Mars/Olympus' is not known here"),
            ("12:00 ../../etc/passwd", "nothing may follow the time"),
            ("12:00 Europe/../UTC", "time zone 'Europe/../UTC' is not known here"),
            ("12:00 Europe", "time zone 'Europe' is not known here"),
            ("12:00 CEST", "time zone 'CEST' is not known here"),
        ],
    )
    def test_is_refused_with_the_place(self, text: str, words: str) -> None:
        with pytest.raises(WindowInvalidError) as caught:
            parse_calendar(text, local=UTC)
        assert words in str(caught.value)
        assert (caught.value.code, caught.value.exit_status) == ("window-invalid", EXIT_USAGE)

    def test_is_bounded(self) -> None:
        with pytest.raises(WindowInvalidError, match="longer than 512 characters"):
            parse_calendar("1," * TEXT_MAX + "1:00", local=UTC)

    @settings(deadline=None)
    @given(st.text(alphabet="MonSu0123456789:-~/*.,@ UTC", max_size=40))
    def test_is_read_or_refused_and_never_breaks(self, text: str) -> None:
        with suppress(WindowInvalidError):
            calendar = parse_calendar(text, local=NEW_YORK)
            assert parse_calendar(str(calendar), local=NEW_YORK) == calendar


class TestElapses:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Mon *-*~07/1", ["Mon 2026-01-26", "Mon 2026-02-23", "Mon 2026-03-30"]),
            ("*-02~03", ["Thu 2026-02-26", "Fri 2027-02-26", "Sun 2028-02-27"]),
            ("*-*~01..03", ["Thu 2026-01-29", "Fri 2026-01-30", "Sat 2026-01-31"]),
            ("*-*-31", ["Sat 2026-01-31", "Tue 2026-03-31", "Sun 2026-05-31"]),
            ("*-02-29", ["Tue 2028-02-29", "Sun 2032-02-29", "Fri 2036-02-29"]),
            ("2027..2030/2-05-01", ["Sat 2027-05-01", "Tue 2029-05-01"]),
            ("Fri *-*-13", ["Fri 2026-02-13", "Fri 2026-03-13", "Fri 2026-11-13"]),
        ],
    )
    def test_on_these_days(self, text: str, expected: list[str]) -> None:
        found = elapses(
            parse_calendar(text, local=UTC), datetime(2026, 1, 1, tzinfo=UTC), len(expected)
        )
        assert [row.partition(" 00:")[0] for row in found] == expected

    @pytest.mark.parametrize("text", ["2020-01-01", "*-02-30", "*-02,04,06-31", "Mon 2199-12-31"])
    def test_never_when_no_such_day_comes(self, text: str) -> None:
        calendar = parse_calendar(text, local=UTC)
        assert calendar.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is None

    def test_fractions_of_a_second_too(self) -> None:
        calendar = parse_calendar("*:*:0/0.5", local=UTC)
        base = datetime(2026, 1, 1, 0, 0, 0, 499_999, tzinfo=UTC)
        assert calendar.next_after(base) == base + timedelta(microseconds=1)

    def test_after_the_time_that_is_asked_about_not_at_it(self) -> None:
        calendar = parse_calendar("02:00", local=UTC)
        base = datetime(2026, 1, 1, 2, tzinfo=UTC)
        assert calendar.next_after(base) == base + timedelta(days=1)
        assert calendar.next_after(base - timedelta(microseconds=1)) == base

    def test_midnight_of_the_first_though_a_repetition_steps_over_the_end_of_a_month(self) -> None:
        """Where systemd 252 goes to 05:00 at once."""
        found = elapses(
            parse_calendar("0/5:0", local=UTC), datetime(2026, 1, 31, 19, tzinfo=UTC), 3
        )
        assert [row[12:20] for row in found] == ["31 20:00", "01 00:00", "01 05:00"]


class TestWhenTheClocksChange:
    """Europe/Berlin skips 2:00 to 3:00 on 29 March and has it twice on 25 October 2026."""

    def test_a_time_that_is_skipped_does_not_elapse_on_that_day(self) -> None:
        calendar = parse_calendar("02:30", local=BERLIN)
        assert elapses(calendar, local("2026-03-28 02:00", BERLIN), 2) == [
            "Sat 2026-03-28 02:30:00+0100",
            "Mon 2026-03-30 02:30:00+0200",
        ]

    def test_a_repetition_goes_on_behind_the_gap(self) -> None:
        calendar = parse_calendar("*:0/30", local=BERLIN)
        assert elapses(calendar, local("2026-03-29 01:00", BERLIN), 2) == [
            "Sun 2026-03-29 01:30:00+0100",
            "Sun 2026-03-29 03:00:00+0200",
        ]

    def test_every_second_finds_the_end_of_the_gap_without_counting_there(self) -> None:
        calendar = parse_calendar("*:*:*", local=LORD_HOWE)  # skips 2:00 to 2:30
        assert elapses(calendar, local("2026-10-04 01:59:59", LORD_HOWE), 1) == [
            "Sun 2026-10-04 02:30:00+1100"
        ]

    def test_a_time_that_comes_twice_elapses_the_first_time(self) -> None:
        calendar = parse_calendar("02:30", local=BERLIN)
        assert elapses(calendar, local("2026-10-25 00:00", BERLIN), 2) == [
            "Sun 2026-10-25 02:30:00+0200",
            "Mon 2026-10-26 02:30:00+0100",
        ]

    def test_who_asks_in_the_hour_that_is_repeated_hears_of_the_second_time(self) -> None:
        calendar = parse_calendar("02:30", local=BERLIN)
        asked = local("2026-10-25 02:10", BERLIN, fold=1)
        assert elapses(calendar, asked, 1) == ["Sun 2026-10-25 02:30:00+0100"]
        once = calendar.next_after(asked, again=False)
        assert once == local("2026-10-26 02:30", BERLIN)

    def test_a_whole_day_that_a_zone_left_out_does_not_elapse(self) -> None:
        apia = ZoneInfo("Pacific/Apia")  # had no 30 December 2011
        assert elapses(parse_calendar("12:00", local=apia), local("2011-12-29 00:00", apia), 2) == [
            "Thu 2011-12-29 12:00:00-1000",
            "Sat 2011-12-31 12:00:00+1400",
        ]

    @settings(deadline=None, max_examples=300)
    @given(
        st.sampled_from(["*:0/20", "02:30", "*:*", "Sun 02:15,45", "0..3:59:59"]),
        st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE]),
        st.sampled_from([(2026, 3, 28), (2026, 10, 24), (2026, 4, 4), (2026, 10, 3), (2026, 3, 7)]),
        st.integers(min_value=0, max_value=3 * 86400),
    )
    def test_it_only_goes_forward_and_only_to_what_is_written(
        self, text: str, zone: ZoneInfo, day: tuple[int, int, int], seconds: int
    ) -> None:
        calendar = parse_calendar(text, local=zone)
        base = datetime(*day, tzinfo=UTC) + timedelta(seconds=seconds)
        for again in (True, False):
            at = calendar.next_after(base, again=again)
            assert at is not None
            assert at > base
            wall = at.astimezone(zone)
            just_before = (wall.replace(tzinfo=None) - timedelta(microseconds=1)).replace(
                tzinfo=UTC
            )
            on_paper = parse_calendar(text, local=UTC).next_after(just_before)
            assert on_paper == wall.replace(tzinfo=UTC, fold=0)
            assert again or wall.fold == 0
