"""Windows of time: when a reboot may begin. Values and a time in, an answer out; no clock.

A window opens when its calendar elapses and stays open for its length of real time, also where
the clocks change meanwhile. It is open at its first instant and closed at its last. It says when
a reboot may *begin*; how long the machine is away is not its business. Several windows are open
when one of them is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from types import MappingProxyType
from typing import Final, Protocol

from updater.calendar import Calendar
from updater.calendar_syntax import parse_calendar
from updater.errors import WindowInvalidError
from updater.zones import open_zone

LENGTH_MIN: Final = timedelta(minutes=1)  # the service looks every few seconds
LENGTH_MAX: Final = timedelta(days=7)
CLOSING_HORIZON: Final = timedelta(days=366)  # what is open for longer does not close for us
CLOSING_STEPS: Final = 1000  # windows that follow each other without a pause
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]+)\s*")
_SECONDS: Final = MappingProxyType(
    {
        unit: seconds
        for seconds, units in (
            (0.000001, ("us", "usec", "µs")),
            (0.001, ("ms", "msec")),
            (1, ("s", "sec", "second", "seconds")),
            (60, ("m", "min", "minute", "minutes")),
            (3600, ("h", "hr", "hour", "hours")),
            (86400, ("d", "day", "days")),
            (7 * 86400, ("w", "week", "weeks")),
        )
        for unit in units
    }
)


class Row(Protocol):
    """A window as the settings write it."""

    @property
    def start(self) -> str:
        """A calendar expression."""

    @property
    def length(self) -> str:
        """A time span with units."""

    @property
    def timezone(self) -> str:
        """An IANA name; empty: the zone of `start`, else the local one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window.

    Attributes:
        calendar: when it opens, and in which zone.
        length: for how long, real time.
        name: as a person wrote it.
    """

    calendar: Calendar
    length: timedelta
    name: str

    def is_open(self, now: datetime) -> bool:
        """Tell whether it opened less than its length ago."""
        return self._opened(now) is not None

    def closes_at(self, now: datetime) -> datetime | None:
        """Return when it closes if it does not open again before; None when it is closed."""
        opened = self._opened(now)
        if opened is None:
            return None
        unsure = now.astimezone(
            UTC
        )  # from here on nothing opened; before it the last opening is looked for
        while (again := self._opening_after(opened)) is not None and again <= now:
            opened = again
            middle = opened + (unsure - opened) / 2
            later = self._opening_after(middle)
            if later is not None and later <= now:
                opened = later
            else:
                unsure = middle
        return opened + self.length

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when it opens next after `now`, None when it never does again."""
        return self._opening_after(now)

    def _opened(self, now: datetime) -> datetime | None:
        """Return an opening by which it is open now, the first of them."""
        since = now.astimezone(UTC) - self.length  # of real time, not of what the wall shows
        opened = self._opening_after(since)
        return opened if opened is not None and opened <= now else None

    def _opening_after(self, moment: datetime) -> datetime | None:
        return self.calendar.next_after(moment, again=False)


@dataclass(frozen=True, slots=True)
class Windows:
    """Several windows as one."""

    each: tuple[Window, ...]

    def open_now(self, now: datetime) -> Window | None:
        """Return a window that is open, the one that closes last; None when all are closed."""
        closings = [(closes, i) for i, w in enumerate(self.each) if (closes := w.closes_at(now))]
        return self.each[max(closings)[1]] if closings else None

    def is_open(self, now: datetime) -> bool:
        """Tell whether one of them is open."""
        return any(window.is_open(now) for window in self.each)

    def next_to_open(self, now: datetime) -> tuple[datetime, Window] | None:
        """Return when the next window opens after `now`, and which; None when none ever does."""
        openings = [(opens, i) for i, w in enumerate(self.each) if (opens := w.opens_at(now))]
        if not openings:
            return None
        opens, index = min(openings)
        return opens, self.each[index]

    def closes_at(self, now: datetime) -> datetime | None:
        """Return when no window is open any more.

        Windows that touch or overlap are followed to their end. None when all are closed now,
        or when they go on for longer than anybody looks ahead.
        """
        if not self.is_open(now):
            return None
        end = now.astimezone(UTC)
        horizon = end + CLOSING_HORIZON
        for _ in range(CLOSING_STEPS):
            closings = [closes for window in self.each if (closes := window.closes_at(end))]
            if not closings:
                return end
            end = max(closings)
            if end > horizon:
                break
        return None


def read_windows(rows: Sequence[Row], *, local: tzinfo) -> Windows:
    """Return the windows that the settings describe.

    Raises:
        WindowInvalidError: at the first that does not hold.
    """
    return Windows(tuple(read_window(row, local=local) for row in rows))


def read_window(row: Row, *, local: tzinfo) -> Window:
    """Return one window of the settings.

    What locksmith takes as a start, `Sun 14:00` or `14:00`, means the same here, blanks at the
    ends and between included.

    Raises:
        WindowInvalidError: the expression, the length or the zone does not hold.
    """
    zone = open_zone(row.timezone) if row.timezone else local
    calendar = parse_calendar(" ".join(row.start.split()), local=zone)
    if row.timezone and calendar.zone_name:
        raise WindowInvalidError(
            f"the window names two time zones: {calendar.zone_name} in {row.start!r} and "
            f"{row.timezone}"
        )
    name = f"{row.start!r} for {row.length}"
    return Window(calendar=calendar, length=parse_length(row.length), name=name)


def parse_length(text: str) -> timedelta:
    """Return the length of a window: systemd.time(7), TIME SPANS, where each number has a unit.

    Args:
        text: such as `1h30m`, `90min`, `2h`; what Go calls a duration is one of these.

    Raises:
        WindowInvalidError: it is no time span, too short or too long.
    """
    seconds, at = 0.0, 0
    while at < len(text) <= 100:
        part = _PART.match(text, at)
        unit = _SECONDS.get(part.group(2)) if part else None
        if part is None or unit is None or len(part.group(1)) > 9:
            break
        seconds += unit * float(part.group(1))
        at = part.end()
    if not text or at < len(text):
        raise WindowInvalidError(
            f"length {text!r} is no time span such as 90min, 4h or 1h30m, at {text[at : at + 20]!r}"
        )
    if not LENGTH_MIN.total_seconds() <= seconds <= LENGTH_MAX.total_seconds():
        raise WindowInvalidError(f"length {text!r} is not within one minute and seven days")
    return timedelta(seconds=seconds)
