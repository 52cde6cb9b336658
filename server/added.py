"""What adding a release came to, as values: for whoever publishes and for whoever is told."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from images.release import PayloadFacts


class Outcome(enum.Enum):
    """What publishing a payload came to; the value is what `release add --json` prints."""

    SIGNED = "signed"  # a new release
    STOCK = "stock"  # a payload of format 1 beside a signed one, for stock clients only
    UNCHANGED = "unchanged"  # it had been published before, exactly so
    TOO_LARGE = "too-large"  # a delta that does not pay: it is not kept
    LARGER = "larger"  # than another delta from the same version: it is not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedDelta:
    """What `add_release` did with a delta.

    Attributes:
        outcome: in one word.
        source: the version that it starts from.
        sha256: its name.
        size: its bytes.
        tuf_path: where `releases` lists it; empty when it is not kept.
    """

    outcome: Outcome
    source: str
    sha256: str
    size: int
    tuf_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add_release` did.

    Attributes:
        outcome: in one word.
        facts: what was signed, or for a stock payload what would have been.
        sha256: the payload's name.
        size: its bytes.
        tuf_path: where `releases` lists the version.
        deltas: what was done with each delta, in their order.
        warnings: sentences that a person should read.
    """

    outcome: Outcome
    facts: PayloadFacts
    sha256: str
    size: int
    tuf_path: str
    warnings: tuple[str, ...]
    deltas: tuple[AddedDelta, ...] = ()
