"""Our calendar against the real one: `systemd-analyze calendar` on random expressions and dates.

One call takes many expressions; a call is one zone and one moment, half of them near a change of
the clocks. The seed is printed; BASCULE_CALENDAR_SEED takes another one, BASCULE_CALENDAR_PAIRS
makes it longer.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from updater.calendar import MINUTE_US
from updater.calendar_syntax import parse_calendar
from updater.errors import WindowInvalidError

pytestmark = pytest.mark.e2e

SEED: Final = 252  # one that never changes: what fails in CI must be what was changed
PAIRS: Final = int(os.environ.get("BASCULE_CALENDAR_PAIRS", "2000"))
EXPRESSIONS_PER_CALL: Final = 25
ELAPSES: Final = 5
# Left out are zones in which systemd does not do what it does elsewhere: Europe/Dublin (winter is
# the special time), Antarctica/Troll (skips two hours), Pacific/Chatham (skips from 2:45),
# America/Havana (midnight comes twice: which is taken depends on the question before).
ZONES: Final = (
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",  # changes at midnight
    "Asia/Beirut",
    "Asia/Kathmandu",  # 5:45 from UTC
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Pacific/Auckland",
    "UTC",
)
FIELDS: Final = (
    ("months", 1, 12),
    ("days", 1, 28),
    ("days", 1, 29),
    ("days", 1, 30),
    ("days", 1, 31),
    ("hours", 0, 23),
    ("minutes", 0, 59),
    ("microseconds", 0, MINUTE_US - 1),
)


@dataclass(frozen=True)
class Answer:
    """What one of the two says of an expression.

    Attributes:
        normal: the normalised form; empty when the expression is refused.
        elapses: the next times, in whole seconds as the program prints them.
    """

    normal: str
    elapses: tuple[datetime, ...]


def oracle(expressions: Sequence[str], base: datetime, zone: str) -> list[Answer | None]:
    """Ask systemd in one call; None is where it gives up, a loop of its own."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    at = base.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = [tool, "calendar", f"--iterations={ELAPSES}", f"--base-time={at}", "--", *expressions]
    environment = {"TZ": zone, "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert "--base-time" not in done.stderr
    given_up = set(
        re.findall(r"^Failed to determine next elapse for '(.*)':", done.stderr, re.MULTILINE)
    )
    refused = set(
        re.findall(r"^Failed to parse calendar specification '(.*)':", done.stderr, re.MULTILINE)
    )
    blocks = iter(re.split(r"^Normalized form: ", done.stdout, flags=re.MULTILINE)[1:])
    answers: list[Answer | None] = []
    for text in expressions:
        if text in given_up:
            answers.append(None)
        else:
            answers.append(Answer("", ()) if text in refused else _answer(next(blocks)))
    return answers


def stumbles(text: str) -> bool:
    """Tell whether systemd 252 gets lost: `0/5` steps from 20:00 to 25:00, one in the morning.

    At the end of a month it forgets to look back at what lies before that: midnight of the first
    does not elapse. With a change of the clocks in between, other times do not.
    """
    calendar = parse_calendar(text, local=UTC)
    return any(
        term.repeat
        and term.stop < 0
        and low + (term.start - high - 1) % term.repeat > min(getattr(calendar, name)).start
        for name, low, high in FIELDS
        for term in getattr(calendar, name)
    )


def _answer(block: str) -> Answer:
    """Read what was printed; the line in UTC is left out where the local zone is UTC."""
    label = r"\(in UTC\)" if "(in UTC)" in block else r"(?:Next elapse|Iter\. #\d+)"
    found = re.findall(rf"^\s*{label}: \w+ (\S+ \S+) UTC$", block, re.MULTILINE)
    times = (datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for text in found)
    return Answer(block.partition("\n")[0].strip(), tuple(times))


def ours(text: str, base: datetime, zone: str) -> Answer:
    try:
        calendar = parse_calendar(text, local=ZoneInfo(zone))
    except WindowInvalidError:
        return Answer("", ())
    elapses: list[datetime] = []
    at = calendar.next_after(base)
    while at is not None and len(elapses) < ELAPSES:
        elapses.append(at)
        at = calendar.next_after(at)
    return Answer(str(calendar), tuple(at.replace(microsecond=0) for at in elapses))


class Writer:
    """Writes random expressions, most of which are right, and dates to ask about."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def call(self) -> tuple[list[str], datetime, str]:
        zone = self._random.choice(ZONES)
        base = self._base(ZoneInfo(zone))
        return [self._expression(base) for _ in range(EXPRESSIONS_PER_CALL)], base, zone

    def _base(self, zone: ZoneInfo) -> datetime:
        begin = datetime(2012, 1, 1, tzinfo=UTC)
        base = begin + timedelta(seconds=self._random.randrange(25 * 365 * 86400))
        changes = list(_changes(zone, base))
        if not changes or self._random.random() < 0.4:
            return base
        hours = self._random.choice([1, 3, 30])
        return self._random.choice(changes) + timedelta(
            seconds=self._random.randint(-hours * 3600, hours * 3600)
        )

    def _expression(self, base: datetime) -> str:
        choose = self._random.random
        if choose() < 0.04:
            words = [
                "minutely",
                "hourly",
                "daily",
                "weekly",
                "MONTHLY",
                "yearly",
                "quarterly",
                "semiannually",
            ]
            return self._random.choice(words) + self._zone()
        parts = []
        if choose() < 0.4:
            parts.append(self._weekdays())
        if choose() < 0.6:
            parts.append(self._date(base))
        if choose() < 0.85 or not parts:
            parts.append(self._time())
        text = " ".join(parts) + self._zone()
        return self._spoiled(text) if choose() < 0.12 else text

    def _zone(self) -> str:
        if self._random.random() < 0.7:
            return ""
        return " " + self._random.choice((*ZONES, "utc", "Nowhere/Land"))

    def _weekdays(self) -> str:
        names = ["Mon", "tue", "Wednesday", "THU", "Friday", "Sat", "sunday"]
        some = self._random.choices(names, k=self._random.randint(1, 3))
        return self._random.choice([",", ",", "..", "-"]).join(some)

    def _date(self, base: datetime) -> str:
        year = self._field(base.year - 1, base.year + 6, digits=4, stars=0.8)
        month = self._field(1, 12, stars=0.5)
        if self._random.random() < 0.25:
            day = "~" + self._field(1, 29, stars=0.05)
        else:
            day = "-" + self._field(1, 32, stars=0.4)
        return (f"{year}-" if self._random.random() < 0.6 else "") + month + day

    def _time(self) -> str:
        hour = self._field(0, 24, stars=0.2, favour=(0, 1, 2, 2, 3))
        minute = self._field(0, 60, stars=0.15, favour=(0, 0, 15, 30, 45))
        if self._random.random() < 0.6:
            return f"{hour}:{minute}"
        second = self._field(0, 60, stars=0.2)
        if self._random.random() < 0.2 and "*" not in second:
            second += f".{self._random.choice(['5', '25', '9999995', '0000004', '75/0.5'])}"
        return f"{hour}:{minute}:{second}"

    def _field(
        self, low: int, high: int, *, digits: int = 0, stars: float, favour: Sequence[int] = ()
    ) -> str:
        if self._random.random() < stars:
            return "*"
        count = self._random.choice([1, 1, 1, 2, 3])
        return ",".join(self._term(low, high, digits, favour) for _ in range(count))

    def _term(self, low: int, high: int, digits: int, favour: Sequence[int]) -> str:
        number = self._random.randint(low, high)
        if favour and self._random.random() < 0.6:
            number = self._random.choice(favour)
        if digits and self._random.random() < 0.1:
            number %= 100
        text = f"{number:0{self._random.choice([0, digits or 2])}}"
        kind = self._random.random()
        if kind < 0.2:
            text += f"..{self._random.randint(min(number, high), high)}"
        if 0.15 < kind < 0.35:
            text += f"/{self._random.randint(1, max((high - low) // 3, 1))}"
        return text

    def _spoiled(self, text: str) -> str:
        at = self._random.randrange(len(text))
        sign = str(self._random.choice([*":-~/*.,@ 09", "", "x", "..", "Mon "]))
        return text[:at] + sign + text[at + self._random.randint(0, 1) :]


def _changes(zone: ZoneInfo, around: datetime) -> Iterator[datetime]:
    """Yield the hours in the year from `around` at which the clocks of the zone change."""
    hour = around.replace(minute=0, second=0)
    for _ in range(366 * 24):
        after = hour + timedelta(hours=1)
        if hour.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            yield after
        hour = after


@dataclass
class Tally:
    """How the pairs came out."""

    agreed: int = 0
    refused: int = 0
    never: int = 0
    elapses: int = 0
    given_up: int = 0
    lost: int = 0
    differ: list[str] = field(default_factory=list)

    def count(self, text: str, found: Answer, expected: Answer | None, where: str) -> None:
        if expected is None:
            self.given_up += 1
        elif found == expected:
            self.agreed += 1
            self.refused += not expected.normal
            self.never += bool(expected.normal) and not expected.elapses
            self.elapses += len(expected.elapses)
        elif found.normal == expected.normal and stumbles(text):
            self.lost += 1
        else:
            self.differ.append(f"{text!r} {where}:\n  {found}\n  {expected}")


def test_random_expressions_elapse_when_systemd_says() -> None:
    seed = int(os.environ.get("BASCULE_CALENDAR_SEED", SEED))
    print(f"\nseed {seed}")
    writer, tally = Writer(seed), Tally()
    while tally.agreed + len(tally.differ) < PAIRS:
        expressions, base, zone = writer.call()
        answers = oracle(expressions, base, zone)
        for text, expected in zip(expressions, answers, strict=True):
            tally.count(text, ours(text, base, zone), expected, f"from {base} in {zone}")
    print(
        f"{tally.agreed} of {tally.agreed + len(tally.differ)} pairs agree: {tally.refused} "
        f"refused, {tally.never} never, {tally.elapses} elapses; systemd gave up on "
        f"{tally.given_up} more and got lost in {tally.lost}"
    )
    assert not tally.differ, f"seed {seed}:\n" + "\n".join(tally.differ[:10])
    assert tally.refused < tally.agreed / 2  # most of what is written means something
    assert tally.given_up + tally.lost < tally.agreed / 20  # what is excused stays rare
