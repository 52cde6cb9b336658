"""How many bytes this node may still fetch, from settings and what was spent. No I/O happens here.

An allowance is one limit with what is left of it. Payload bytes count as they come in, thrown away
ones included; the signed metadata and the talk with the server do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final

from updater.errors import RefusedError
from updater.state import Traffic

if TYPE_CHECKING:
    from datetime import datetime


class BudgetError(RefusedError):
    """What is wanted costs more bytes than the operator allowed."""


class UpdateBudgetError(BudgetError):
    """One update would cost more than an update may."""

    code = "budget-update"
    hint = "Raise download.max_mib_per_update, or publish a delta from the running version."


class DayBudgetError(BudgetError):
    """The day's bytes are spent, or do not suffice."""

    code = "budget-day"
    hint = (
        "It goes on by itself on another day (UTC), if the whole payload fits a day's bytes;"
        " else raise download.max_mib_per_day."
    )


class MeteredLinkError(BudgetError):
    """The link is metered, and the update costs more than may be fetched over such a one."""

    code = "link-metered"
    hint = "It goes on by itself once the link is not metered; or raise download.metered_max_mib."


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
    """

    error: type[BudgetError]
    limit: int
    spent: int
    words: str

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
    of_version = traffic.version_bytes if traffic.version == version else 0
    of_day = traffic.day_bytes if traffic.day == day_of(now) else 0
    rows: tuple[tuple[type[BudgetError], int | None, int, str], ...] = (
        (MeteredLinkError, limits.metered, of_version, "a metered link"),
        (UpdateBudgetError, limits.update, of_version, "download.max_mib_per_update"),
        (DayBudgetError, limits.day, of_day, "download.max_mib_per_day"),
    )
    return tuple(
        Allowance(error=error, limit=limit, spent=spent, words=words)
        for error, limit, spent, words in rows
        if limit is not None
    )


def tightest(limits: Sequence[Allowance]) -> Allowance | None:
    """Return the limit with the fewest bytes left, None where nothing is limited."""
    return min(limits, key=lambda limit: limit.left, default=None)


def charged(traffic: Traffic, *, version: str, downloaded: int, now: datetime) -> Traffic:
    """Return what was spent, once all that a journal counts is counted; twice is the same as once.

    Args:
        traffic: what was counted before.
        version: which update the journal is about.
        downloaded: the bytes in it, all attempts together; fewer than before when it began anew.
        now: the time; what is new counts for its day.
    """
    known = traffic.counted if traffic.version == version else 0
    fresh = downloaded - known if downloaded >= known else downloaded
    of_version = traffic.version_bytes if traffic.version == version else 0
    of_day = traffic.day_bytes if traffic.day == day_of(now) else 0
    return Traffic(
        day=day_of(now),
        day_bytes=of_day + fresh,
        version=version,
        version_bytes=of_version + fresh,
        counted=downloaded,
    )


def day_of(now: datetime) -> str:
    """Return the day that bytes count for, in UTC."""
    return now.astimezone(UTC).date().isoformat()


def mb(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:.1f} MB"
