"""Calendar events as systemd.time(7) writes them: which times of a zone match, and the next one.

A value, no clock and no text: `calendar_syntax` reads the text. What elapses when is what
`systemd-analyze calendar` of systemd 252 says, found by asking it:

* A wall time that the clocks skip in spring does not elapse on that day.
* A wall time that comes twice in autumn elapses once, the first time. Only who asks between the
  two is told the second (`again`).

We part from systemd where it fails by itself: in zones whose winter time is the special one
(Europe/Dublin) it gives up, or loses a day or a month, around the skipped hour.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final, NamedTuple, TypeAlias

from typing_extensions import override

YEARS: Final = (1970, 2199)  # beyond them nothing elapses: systemd's bound
SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
DAY_NAMES: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TICK: Final = timedelta(microseconds=1)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, order=True)
class Term:
    """Some values of one field: `start`, and on in steps of `repeat` up to `stop`.

    Attributes:
        start: the first value.
        stop: the last one at most; -1: as far as the field goes.
        repeat: the step; 0: `start` alone.
    """

    start: int
    stop: int = -1
    repeat: int = 0

    def at_or_after(self, value: int) -> int | None:
        """Return the first of these values that is `value` or more, None if there is none."""
        if self.start >= value:
            return self.start
        if self.repeat == 0:
            return None
        found = value + (self.start - value) % self.repeat
        return found if self.stop < 0 or found <= self.stop else None


Field: TypeAlias = tuple[Term, ...]  # no term at all: every value


class _Wheel(NamedTuple):
    """A field of the time of day and the highest value that it can have."""

    field: Field
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """When something elapses, in one time zone.

    Attributes:
        weekdays: 0 is Monday; all seven when none was named.
        years, months, days: of the date; a field without terms matches all.
        from_month_end: `days` count back from the end of the month, 1 is the last.
        hours, minutes, microseconds: of the time; the last within the minute.
        zone: where the clock hangs.
        zone_name: as it was written after the time, "" for the local zone.
    """

    weekdays: frozenset[int] = frozenset(range(7))
    years: Field = ()
    months: Field = ()
    days: Field = ()
    from_month_end: bool = False
    hours: Field = (Term(0),)
    minutes: Field = (Term(0),)
    microseconds: Field = (Term(0),)
    zone: tzinfo
    zone_name: str = ""

    def next_after(self, base: datetime, *, again: bool = True) -> datetime | None:
        """Return the first time after `base` that matches, None if there is none any more.

        Args:
            base: with zone; itself it does not count.
            again: when `base` lies in an hour that comes twice and has come once already, count
                what it repeats, as systemd does. Without, each wall time elapses only once.

        Returns:
            In UTC.
        """
        earliest = base.astimezone(self.zone).replace(tzinfo=None, fold=0) + _TICK
        while (wall := self._wall_at_or_after(earliest)) is not None:
            when = self._instant(wall, fold=0)
            if when is not None and when <= base:
                when = self._instant(wall, fold=1) if again else None
            if when is not None:
                return when
            earliest = self._past_change(wall)
        return None

    def _instant(self, wall: datetime, *, fold: int) -> datetime | None:
        """Return when the clock on the wall shows this, None if it never does."""
        when = wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC)
        shown = when.astimezone(self.zone).replace(tzinfo=None, fold=0)
        return when if shown == wall else None

    def _past_change(self, wall: datetime) -> datetime:
        """Return the first full second at which the clock is done with the change around `wall`.

        While it skips an hour or repeats one the two folds differ: halve until they do not.
        """
        inside = wall.replace(microsecond=0)
        width = abs(self._offset(inside, fold=1) - self._offset(inside, fold=0))
        low, high = 0, max(int(width / _SECOND), 1)  # still inside at low, outside at high
        while high - low > 1:
            middle = (low + high) // 2
            at = inside + middle * _SECOND
            if self._offset(at, fold=0) == self._offset(at, fold=1):
                high = middle
            else:
                low = middle
        return inside + high * _SECOND

    def _offset(self, wall: datetime, *, fold: int) -> timedelta:
        return self.zone.utcoffset(wall.replace(tzinfo=self.zone, fold=fold)) or timedelta(0)

    def _wall_at_or_after(self, wall: datetime) -> datetime | None:
        day = self._day_at_or_after(wall.date())
        if day == wall.date():
            found = _time_at_or_after(self._wheels(), wall.time())
            if found is not None:
                return datetime.combine(day, found)
            day = self._day_at_or_after(day + timedelta(days=1))
        first = _time_at_or_after(self._wheels(), time.min)
        return None if day is None or first is None else datetime.combine(day, first)

    def _wheels(self) -> tuple[_Wheel, ...]:
        return (
            _Wheel(self.hours, 23),
            _Wheel(self.minutes, 59),
            _Wheel(self.microseconds, MINUTE_US - 1),
        )

    def _day_at_or_after(self, day: date) -> date | None:
        for year, month in self._months_from(day.year, day.month):
            begun = (year, month) == (day.year, day.month)
            for number in self._days_from(year, month, day.day if begun else 1):
                found = date(year, month, number)
                if found.weekday() in self.weekdays:
                    return found
        return None

    def _months_from(self, year: int, month: int) -> Iterator[tuple[int, int]]:
        for found in _values(self.years, year, YEARS[1]):
            for number in _values(self.months, month if found == year else 1, 12):
                yield found, number

    def _days_from(self, year: int, month: int, day: int) -> Iterator[int]:
        length = monthrange(year, month)[1]
        field = self.days
        if self.from_month_end:
            field = tuple(_counted_back(term, length) for term in field)
        return _values(field, day, length)

    @override
    def __str__(self) -> str:
        """Return the normalised form, as `systemd-analyze calendar` prints it."""
        joint = "~" if self.from_month_end else "-"
        day = f"{_text(self.years, 4)}-{_text(self.months, 2)}{joint}{_text(self.days, 2)}"
        every_second = Term(0, -1, SECOND_US) in self.microseconds
        second = "*" if every_second else _text(self.microseconds, 2, SECOND_US)
        hour = f"{_text(self.hours, 2)}:{_text(self.minutes, 2)}:{second}"
        parts = (_weekdays_text(self.weekdays), day, hour, self.zone_name)
        return " ".join(part for part in parts if part)


def _at_or_after(field: Field, value: int, high: int) -> int | None:
    """Return the first value of a field that is `value` or more and at most `high`."""
    if not field:
        return value if value <= high else None
    found = [match for term in field if (match := term.at_or_after(value)) is not None]
    first = min(found, default=high + 1)
    return first if first <= high else None


def _values(field: Field, value: int, high: int) -> Iterator[int]:
    """Yield the values of a field from `value` on."""
    found = _at_or_after(field, value, high)
    while found is not None:
        yield found
        found = _at_or_after(field, found + 1, high)


def _counted_back(term: Term, length: int) -> Term:
    """Turn days before the end of a month of `length` days into days of that month."""
    start, stop = length + 1 - term.start, length + 1 - term.stop
    return Term(start, -1, term.repeat) if term.stop < 0 else Term(stop, start, term.repeat)


def _time_at_or_after(wheels: Sequence[_Wheel], earliest: time) -> time | None:
    """Return the first time of day that matches and is not before `earliest`."""
    microsecond = earliest.second * SECOND_US + earliest.microsecond
    found = _turned(wheels, (earliest.hour, earliest.minute, microsecond))
    if found is None:
        return None
    hour, minute, rest = found
    return time(hour, minute, *divmod(rest, SECOND_US))


def _turned(wheels: Sequence[_Wheel], at: Sequence[int]) -> tuple[int, ...] | None:
    """Turn the wheels on, like those of a counter, until all match."""
    if not wheels:
        return ()
    wheel, finer = wheels[0], wheels[1:]
    here = _at_or_after(wheel.field, at[0], wheel.high)
    if here == at[0]:
        rest = _turned(finer, at[1:])
        if rest is not None:
            return (here, *rest)
        here = _at_or_after(wheel.field, here + 1, wheel.high)
    if here is None:
        return None
    rest = _turned(finer, [0] * len(finer))
    return None if rest is None else (here, *rest)


def _text(field: Field, width: int, unit: int = 1) -> str:
    return ",".join(_term_text(term, width, unit) for term in field) or "*"


def _term_text(term: Term, width: int, unit: int) -> str:
    text = _number_text(term.start, width, unit)
    if term.stop >= 0:
        text += ".." + _number_text(term.stop, width, unit)
    if term.repeat and not (term.stop >= 0 and term.repeat == unit):
        text += "/" + _number_text(term.repeat, 1, unit)
    return text


def _number_text(value: int, width: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    return f"{whole:0{width}}" + (f".{fraction:06}" if fraction else "")


def _weekdays_text(weekdays: frozenset[int]) -> str:
    """Join days that follow each other: three or more as a range."""
    if len(weekdays) == len(DAY_NAMES):
        return ""
    runs: list[list[int]] = []
    for day in sorted(weekdays):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(_run_text(run) for run in runs)


def _run_text(run: Sequence[int]) -> str:
    names = [DAY_NAMES[day] for day in run]
    return ",".join(names) if len(names) < 3 else f"{names[0]}..{names[-1]}"
