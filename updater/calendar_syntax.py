"""Reads calendar expressions, systemd.time(7), CALENDAR EVENTS: text to a `Calendar`.

What systemd 252 accepts is accepted with the same meaning, what it refuses is refused, with the
place. Left out on purpose, with a hint: `@` and Unix seconds, which name no time that comes
again, and abbreviations of the local zone such as `CEST`, which mean another zone elsewhere.
Looks zones up (`zones`); no other I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from types import MappingProxyType
from typing import Final, TypeAlias

from updater.calendar import DAY_NAMES, MINUTE_US, SECOND_US, YEARS, Calendar, Field, Term
from updater.errors import WindowInvalidError
from updater.zones import open_zone

TEXT_MAX: Final = 512  # characters; a person writes far fewer
NUMBER_MAX_DIGITS: Final = 9
SHORTHANDS: Final = MappingProxyType(
    {
        "minutely": "*-*-* *:*:00",
        "hourly": "*-*-* *:00:00",
        "daily": "*-*-* 00:00:00",
        "monthly": "*-*-01 00:00:00",
        "weekly": "Mon *-*-* 00:00:00",
        "yearly": "*-01-01 00:00:00",
        "annually": "*-01-01 00:00:00",
        "anually": "*-01-01 00:00:00",  # systemd knows this one too
        "quarterly": "*-01,04,07,10-01 00:00:00",
        "semiannually": "*-01,07-01 00:00:00",
        "semi-annually": "*-01,07-01 00:00:00",
        "biannually": "*-01,07-01 00:00:00",
        "bi-annually": "*-01,07-01 00:00:00",
    }
)
_NUMBER: Final = re.compile(r"[0-9]+")
_FRACTION: Final = re.compile(r"\.(?!\.)([0-9]*)")
_WEEKDAY: Final = re.compile(
    r"(mon(?:day)?|tue(?:sday)?|wed(?:nesday)?|thu(?:rsday)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?)"
    r"(?=[-., ]|\Z)",
    re.IGNORECASE,
)
_IS_TIME: Final = re.compile(r"[^-~: ]*(:|\Z)")
_AFTER_TERM: Final = frozenset({"", *" ,-~:"})
_END_OF_WORD: Final = frozenset({"", " "})


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the values of a field can be, in units of `unit`."""

    name: str
    low: int
    high: int
    unit: int = 1


_YEAR: Final = _Kind("year", *YEARS)
_MONTH: Final = _Kind("month", 1, 12)
_DAY: Final = _Kind("day", 1, 31)
_DAY_BACK: Final = _Kind("day before the end of the month", 1, 28)
_HOUR: Final = _Kind("hour", 0, 23)
_MINUTE: Final = _Kind("minute", 0, 59)
_SECOND: Final = _Kind("second", 0, MINUTE_US - 1, SECOND_US)
_Raw: TypeAlias = tuple[int, Field]  # where it stands, and its terms as written


def parse_calendar(text: str, *, local: tzinfo) -> Calendar:
    """Return what a calendar expression means.

    Args:
        text: such as `Sat,Sun *-*-* 02:00` or `Mon *-*~07/1 03:30 Europe/Berlin`.
        local: the zone of an expression that names none.

    Raises:
        WindowInvalidError: systemd would refuse it, or it is one of the two forms left out.
    """
    if len(text) > TEXT_MAX:
        raise WindowInvalidError(f"calendar expression is longer than {TEXT_MAX} characters")
    rest, zone_name, zone = _split_zone(text, local)
    rest = SHORTHANDS.get(rest.lower(), rest)
    return replace(_Reader(rest, text).calendar(), zone=zone, zone_name=zone_name)


def _split_zone(text: str, local: tzinfo) -> tuple[str, str, tzinfo]:
    """Take the zone off the end: the last word, if it begins with a letter and is not all."""
    before, _, last = text.rpartition(" ")
    if not before.strip() or not last[:1].isalpha() or _WEEKDAY.match(last):
        return text, "", local
    zone = open_zone(last)
    return before, "UTC" if zone is UTC else last, zone


class _Reader:
    """Reads one expression from left to right.

    Args:
        text: what is read.
        whole: what a person wrote, for errors.
    """

    def __init__(self, text: str, whole: str) -> None:
        self._text = text
        self._whole = whole
        self._at = 0

    def calendar(self) -> Calendar:
        """Read it all; the zone is somebody else's.

        Raises:
            WindowInvalidError: at the first place that cannot be read.
        """
        if not self._text:
            raise self._error("nothing is written", 0)
        found = Calendar(weekdays=self._weekdays() or frozenset(range(7)), zone=UTC)
        if self._peek() == "@":
            raise self._error("Unix seconds are not taken here, write date and time", self._at)
        if self._peek() and not _IS_TIME.match(self._text, self._at):
            found = self._date(found)
        return self._time(found) if self._peek() else found

    def _weekdays(self) -> frozenset[int]:
        days: set[int] = set()
        begin: int | None = None
        while (day := self._weekday()) is not None:
            days.update(self._days(begin, day))
            begin = self._after_weekday(day, in_range=begin is not None)
            if self._peek() in _END_OF_WORD:
                if begin is not None:
                    raise self._error("the range of weekdays has no end", self._at)
                self._skip_blanks()
                return frozenset(days)
        if days:
            raise self._error("a weekday is missing", self._at)
        return frozenset()

    def _days(self, begin: int | None, day: int) -> range:
        first = day if begin is None else begin
        if first > day:
            raise self._error("a range of weekdays begins before it ends", self._at)
        return range(first, day + 1)

    def _weekday(self) -> int | None:
        match = _WEEKDAY.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return DAY_NAMES.index(match.group(1).capitalize()[:3])

    def _after_weekday(self, day: int, *, in_range: bool) -> int | None:
        """Step over what joins two weekdays; returns the day at which a range begins."""
        if self._take(","):
            return None
        if self._take("..") or self._take("-"):  # "-" is the older form
            if in_range:
                raise self._error("a range of weekdays has two ends", self._at)
            return day
        if self._peek() == ".":
            raise self._error("a range is written with two dots", self._at)
        return None

    def _date(self, found: Calendar) -> Calendar:
        """Read year-month-day or month-day; `~` before the day counts it from the end."""
        parts, back = [self._field()], False
        while len(parts) < 3 and self._peek() in {"-", "~"}:
            if back:
                raise self._error("~ stands before the day, which is last", self._at)
            back = self._take("~") or not self._take("-")
            parts.append(self._field())
        if len(parts) < 2 or self._peek() not in _END_OF_WORD:
            raise self._error("a date is written year-month-day or month-day", self._at)
        self._skip_blanks()
        *years, month, day = parts
        begin, year = years[0] if years else (0, ())
        return replace(
            found,
            years=self._checked((begin, tuple(_full_year(term) for term in year)), _YEAR),
            months=self._checked(month, _MONTH),
            days=self._checked(day, _DAY_BACK if back else _DAY),
            from_month_end=back and bool(day[1]),
        )

    def _time(self, found: Calendar) -> Calendar:
        """Read hour:minute or hour:minute:second, up to the end."""
        hour = self._field()
        if not self._take(":"):
            raise self._error("a time is written hour:minute or hour:minute:second", self._at)
        minute = self._field()
        second: _Raw = (self._at, (Term(0),))
        if self._take(":"):
            second = self._field(SECOND_US)
        if self._peek():
            raise self._error("nothing may follow the time but a time zone", self._at)
        return replace(
            found,
            hours=self._checked(hour, _HOUR),
            minutes=self._checked(minute, _MINUTE),
            microseconds=self._checked(second, _SECOND),
        )

    def _field(self, unit: int = 1) -> _Raw:
        begin = self._at
        if self._take("*"):
            return begin, (Term(0, -1, unit),) if unit > 1 else ()
        terms = [self._term(unit)]
        while self._take(","):
            terms.append(self._term(unit))
        return begin, tuple(terms)

    def _term(self, unit: int) -> Term:
        begin = self._at
        start, stop, repeat = self._number(unit), -1, 0
        if self._take(".."):
            stop, repeat = self._number(unit), unit
        if self._take("/"):
            repeat = self._number(unit)
            if repeat == 0:
                raise self._error("a repetition of 0 never comes", self._at - 1)
        elif unit > 1 and stop >= 0 and start + repeat > stop:
            raise self._error("a range of seconds has at least two", begin)
        if self._peek() not in _AFTER_TERM:
            raise self._error("unexpected character", self._at)
        return Term(start, stop, repeat)

    def _number(self, unit: int) -> int:
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            raise self._error("a number is missing", self._at)
        if len(match.group()) > NUMBER_MAX_DIGITS:
            raise self._error("the number is too long", self._at)
        self._at = match.end()
        value = int(match.group()) * unit
        fraction = _FRACTION.match(self._text, self._at) if unit > 1 else None
        if fraction is None:
            return value
        if not fraction.group(1):
            raise self._error("a fraction has digits", self._at)
        self._at = fraction.end()
        # Rounded by the seventh digit; those after it do not count.
        return value + (int(fraction.group(1).ljust(7, "0")[:7]) + 5) // 10

    def _checked(self, raw: _Raw, kind: _Kind) -> Field:
        """Return the terms in their normal form: in order, each once.

        Raises:
            WindowInvalidError: a value lies outside of the field, or nothing would be repeated.
        """
        begin, terms = raw
        found = sorted({_normal(term) for term in terms})
        for number, term in enumerate(found):
            # systemd takes three days off the end of the range again for each day of such a list
            taken = 3 * number if kind is _DAY_BACK else 0
            self._check(term, replace(kind, high=kind.high - taken), begin)
        return tuple(found)

    def _check(self, term: Term, kind: _Kind, begin: int) -> None:
        low, high = kind.low, kind.high
        for value in (term.start, term.start if term.stop < 0 else term.stop):
            if not low <= value <= high:
                shown = f"{low // kind.unit}..{high // kind.unit}"
                what = f"{kind.name} {value // kind.unit} is not within {shown}"
                raise self._error(what, begin)
        if kind.name == _DAY_BACK.name and term.stop < 0:
            fits = term.start - term.repeat >= low
        else:
            fits = term.start + term.repeat <= (high if term.stop < 0 else term.stop)
        if not fits or term.repeat > high - low:
            raise self._error(f"this range or repetition has only one {kind.name}", begin)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, sign: str) -> bool:
        found = self._text.startswith(sign, self._at)
        self._at += len(sign) if found else 0
        return found

    def _skip_blanks(self) -> None:
        while self._take(" "):
            pass

    def _error(self, what: str, at: int) -> WindowInvalidError:
        rest = self._text[at : at + 20]
        place = f"at {rest!r}" if rest else "at the end"
        return WindowInvalidError(f"calendar expression {self._whole!r}: {what}, {place}")


def _full_year(term: Term) -> Term:
    """Turn 12 into 2012 and 89 into 1989."""
    return replace(term, start=_full(term.start), stop=_full(term.stop))


def _full(year: int) -> int:
    if 0 <= year < 70:
        return year + 2000
    return year + 1900 if 70 <= year < 100 else year


def _normal(term: Term) -> Term:
    """Cut a range to whole repetitions; a range of one value is that value."""
    start, stop, repeat = term.start, term.stop, term.repeat
    if stop > start and repeat > 0:
        stop -= (stop - start) % repeat
    return Term(start) if start == stop else Term(start, stop, repeat)
