"""How many bytes this node may still fetch, from settings and what was spent. No I/O happens here.

An allowance is one limit with what is left of it. Payload bytes count as they come in, thrown away
ones included; the signed metadata and the talk with the server do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from updater.errors import RefusedError
from updater.state import Traffic

if TYPE_CHECKING:
    from datetime import datetime


class BudgetError(RefusedError):
    """What is wanted costs more bytes than the operator allowed.

    Attributes:
        is_told: the server that offered it knows that it was put off.
    """

    is_told = False


class UpdateBudgetError(BudgetError):
    """One update would cost more than an update may."""

    code = "budget-update"
    hint = "Raise download.max_mib_per_update, or publish a delta from the running version."


class DayBudgetError(BudgetError):
    """The day's bytes are spent, or a day's do not suffice for a step."""

    code = "budget-day"
    hint = (
        "It goes on by itself on another day (UTC), as far as that day's bytes bring it;"
        " to be faster raise download.max_mib_per_day."
    )


class MeteredLinkError(BudgetError):
    """The link is metered, and the update costs more than may be fetched over such a one."""

    code = "link-metered"
    hint = "It goes on by itself once the link is not metered; or raise download.metered_max_mib."


class FailedBytesError(BudgetError):
    """Payloads that failed here cost so much that another one would cost more than it may."""

    code = "budget-failed"
    hint = (
        "It is tried again by itself on another day (UTC), or at once by `bascule update --force`."
    )


# A version whose payloads fail costs no more than its full payload and this share of it, a day.
OVERHEAD_DIVISOR: Final = 1000
# A clock that went back and shows a later day soon after has seen days pass; after a longer
# leap it was set.
DAYS_THAT_PASS: Final = timedelta(days=31)

WAITS: Final = frozenset(kind.code for kind in BudgetError.__subclasses__())
"""Codes of an install that goes on by itself when there is something to spend again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """One limit.

    Attributes:
        error: what it is refused with.
        limit: bytes that the operator allowed.
        spent: bytes of them that are gone.
        words: names the limit, for a sentence.
        renewed: there are as many again on another day, so that a payload may be spread.
    """

    error: type[BudgetError]
    limit: int
    spent: int
    words: str
    renewed: bool = False

    @property
    def left(self) -> int:
        """Bytes that may still be fetched."""
        return max(0, self.limit - self.spent)

    @property
    def sentence(self) -> str:
        """Say what is allowed and what is left."""
        return f"{self.words} allows {mb(self.limit)}, {mb(self.left)} are left"

    def refusal(self, what: str, cost: int) -> BudgetError:
        """Return the refusal of something that costs `cost` bytes."""
        return self.error(f"{what} costs {mb(cost)}; {self.sentence}")

    def refusal_after(self, received: int) -> BudgetError:
        """Return the refusal of more than what was left, after `received` bytes came."""
        used_up = replace(self, spent=max(self.spent, self.limit))
        return self.error(f"{mb(received)} came, and more is needed; {used_up.sentence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the operator allows at the moment, in bytes; None for no limit.

    Attributes:
        update: for one version, all attempts together.
        day: for one day in UTC.
        metered: for one version, while the link is metered.
    """

    update: int | None = None
    day: int | None = None
    metered: int | None = None


def allowances(
    limits: Limits, traffic: Traffic, *, version: str, now: datetime
) -> tuple[Allowance, ...]:
    """Return every limit in force for fetching `version` now; none when nothing is limited."""
    traffic = today(traffic, now)
    same = traffic.version == version
    of_version = traffic.version_bytes if same else 0
    rows: tuple[tuple[type[BudgetError], int | None, int, str], ...] = (
        (MeteredLinkError, limits.metered, traffic.metered_bytes if same else 0, "a metered link"),
        (UpdateBudgetError, limits.update, of_version, "download.max_mib_per_update"),
        (DayBudgetError, limits.day, traffic.day_bytes, "download.max_mib_per_day"),
    )
    return tuple(
        Allowance(
            error=error, limit=limit, spent=spent, words=words, renewed=error is DayBudgetError
        )
        for error, limit, spent, words in rows
        if limit is not None
    )


def of_failed(failed: int, *, full_size: int) -> Allowance:
    """Return the limit of a version of which payloads failed here after `failed` bytes.

    What fails is followed by another payload, and both together shall cost no more than the full
    one alone would have.
    """
    return Allowance(
        error=FailedBytesError,
        limit=full_size + full_size // OVERHEAD_DIVISOR,
        spent=failed,
        words="what failed here and the full payload together",
    )


def tightest(limits: Sequence[Allowance]) -> Allowance | None:
    """Return the limit with the fewest bytes left, None where nothing is limited."""
    return min(limits, key=lambda limit: limit.left, default=None)


def days_needed(
    limits: Sequence[Allowance], what: str, cost: int, *, step: int, known_after: int | None = None
) -> int:
    """Return over how many more days at most it has to be spread; refuse what is not allowed.

    1. Limits that are not renewed must hold all of it; where its cost is not known before some of
       it is fetched, that much. What it then costs is compared again: `require_price`.
    2. Of the day there must be enough for a step, and a whole day must have that.

    Args:
        limits: that are in force.
        what: names the payload, for a sentence.
        cost: bytes that it may still cost.
        step: bytes that must come within one day to get on at all.
        known_after: bytes after which its true cost is known; None when `cost` is that.

    Raises:
        BudgetError: it is beyond a limit.
    """
    least = cost if known_after is None else min(cost, known_after)
    hard = tightest([limit for limit in limits if not limit.renewed])
    if hard is not None and least > hard.left:
        raise hard.refusal(what, cost)
    day = next((limit for limit in limits if limit.renewed), None)
    if day is None or cost <= day.left:
        return 0
    step = min(cost, step)
    if step > day.limit:
        raise day.error(
            f"{what} needs {mb(step)} in one day to get on; {day.words} allows {mb(day.limit)}"
        )
    a_day = max(1, day.limit // 4, day.limit - step)  # the rest may not be enough for a step
    further = -(-(cost - max(0, day.left - step)) // a_day)
    if step > day.left:
        raise day.error(f"{what} costs {mb(cost)}; {day.sentence}; {_in_days(further)}")
    return further


def require_price(limits: Sequence[Allowance], what: str, cost: int) -> None:
    """Refuse what turned out to cost more than is allowed; a day's limit spreads it instead.

    Raises:
        BudgetError: it does.
    """
    hard = tightest([limit for limit in limits if not limit.renewed])
    if hard is not None and cost > hard.left:
        raise hard.refusal(what, cost)


def today(traffic: Traffic, now: datetime) -> Traffic:
    """Return the account as it stands now: a new day begins with nothing spent.

    A day is new when it is later than all that the clock showed. A clock that was set back brings
    nothing back: the account goes on until a day has passed on that clock, too, so that one that
    was far ahead once does not hold it for ever. Each leap ahead brings one day's bytes at most.
    """
    day = day_of(now)
    if day > traffic.day:
        return _new_day(traffic, day)
    if day == traffic.day:
        return msgspec.structs.replace(traffic, back="") if traffic.back else traffic
    if traffic.back and timedelta() < _apart(traffic.back, day) <= DAYS_THAT_PASS:
        return _new_day(traffic, day)
    return traffic if traffic.back == day else msgspec.structs.replace(traffic, back=day)


def charged(traffic: Traffic, *, version: str, downloaded: int, now: datetime) -> Traffic:
    """Return what was spent, once all that a journal counts is counted; twice is the same as once.

    Args:
        traffic: what was counted before.
        version: which update the journal is about.
        downloaded: the bytes in it, all attempts together; fewer than before when it began anew.
        now: the time; what is new counts for its day.
    """
    traffic = today(traffic, now)
    if traffic.version != version:
        traffic = msgspec.structs.replace(
            traffic, version=version, version_bytes=0, metered_bytes=0, counted=0
        )
    known = traffic.counted
    fresh = downloaded - known if downloaded >= known else downloaded
    return msgspec.structs.replace(
        traffic,
        day_bytes=traffic.day_bytes + fresh,
        version_bytes=traffic.version_bytes + fresh,
        metered_bytes=traffic.metered_bytes + (fresh if traffic.metered else 0),
        counted=downloaded,
    )


def _new_day(traffic: Traffic, day: str) -> Traffic:
    return msgspec.structs.replace(traffic, day=day, day_bytes=0, back="")


def _apart(first: str, second: str) -> timedelta:
    try:
        return date.fromisoformat(second) - date.fromisoformat(first)
    except ValueError:  # a file that makes no sense costs work at most
        return timedelta()


def _in_days(days: int) -> str:
    return f"it will be whole in {days} day{'' if days == 1 else 's'} (UTC)"


def day_of(now: datetime) -> str:
    """Return the day that bytes count for, in UTC."""
    return now.astimezone(UTC).date().isoformat()


def mb(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:.1f} MB"
