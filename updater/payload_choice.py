"""Which payload of a wanted version is fetched: the one that costs fewest bytes. Pure.

From what was signed of all of them, what the booted slot really holds, what failed here and what
the operator allows. It never plans more than is allowed, and says why something cheaper was left
out. That a payload may be installed at all is settled before: `trust.policy`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.budget import Allowance, BudgetError, DayBudgetError, days_needed, mb
from updater.trust.errors import NoUsablePayloadError

if TYPE_CHECKING:
    from images.release import PayloadFacts
    from updater.state import Spoiled
    from updater.trust.view import PayloadTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a part of the booted slot holds.

    Attributes:
        sha256: of its first `size` bytes, hex; empty when it cannot be told.
        size: bytes that were asked for.
        why: why it cannot be told.
    """

    sha256: str
    size: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A payload and the bytes that fetching it would still cost here.

    For a delta they are those of the file less what is flushed already. For a full payload they may
    be fewer: what the node finds on its own disks need not be fetched.

    Attributes:
        payload: what is signed of it.
        cost: bytes that it may cost; those that it costs, where `known_after` is None.
        known_after: bytes of it after which is known what it costs here.
        step: bytes that must come in one go to get on with it; 0 for as few as one likes.
    """

    payload: PayloadTarget
    cost: int
    known_after: int | None = None
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is fetched.

    Attributes:
        best: the payload that costs least.
        left_out: why others are not taken, a sentence each.
        further_days: over how many more days it has to be spread by a day's limit.
    """

    best: Priced
    left_out: tuple[str, ...]
    further_days: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator allows.

    Attributes:
        deltas: whether deltas are taken at all.
        recode_max: bytes that a delta may pack again, which takes CPU time; 0 for no limit. One
            that does not say how many it packs counts as one that packs none.
        limits: every limit of bytes in force; none for no limit.
    """

    deltas: bool = True
    recode_max: int = 0
    limits: tuple[Allowance, ...] = ()


def choose(
    payloads: Sequence[Priced],
    *,
    held: Mapping[str, Held],
    policy: Policy,
    spoiled: Collection[Spoiled] = (),
) -> Choice:
    """Return the payload to fetch.

    1. A delta counts only where deltas are taken, it packs no more again than it may, and the
       booted slot holds what it starts from.
    2. One that failed here does not count; when all of them did, they are tried again.
    3. The cheapest counts; of two at one price the full one, which needs nothing else to be right.
    4. It must be within every limit. What costs more is beyond them then, too; but one whose true
       cost is known after a part that is within them is begun: the cheapest of these. Whoever
       fetches it compares the true cost with the limits again, before the rest.
    5. A limit that is renewed by the day spreads it over days.

    Args:
        payloads: those that trust and policy let this node install, never none.
        held: by part, what the booted slot holds; needed for deltas alone.
        policy: what the operator allows.
        spoiled: those that failed here.

    Raises:
        NoUsablePayloadError: there are deltas alone, and none of them counts.
        BudgetError: even the cheapest is beyond a limit.
    """
    left_out: list[str] = []
    usable: list[Priced] = []
    for priced in payloads:
        why = _unsuitable(priced.payload, held, policy)
        left_out.append(why) if why else usable.append(priced)
    if not usable:
        raise NoUsablePayloadError(f"there is no full payload; {'; '.join(left_out)}")
    failed = {item.sha256: item for item in spoiled}
    sound = [priced for priced in usable if priced.payload.sha256 not in failed]
    if sound:
        left_out += [
            f"{named(priced.payload)} failed here{_after(failed[priced.payload.sha256])}:"
            f" {failed[priced.payload.sha256].sentence}"
            for priced in usable
            if priced.payload.sha256 in failed
        ]
    beyond = f" ({'; '.join(left_out)})" if left_out else ""
    ordered = sorted(sound or usable, key=_order)
    first: BudgetError | None = None
    for priced in ordered:
        try:
            further = days_needed(
                policy.limits,
                f"{named(priced.payload)}{beyond}",
                priced.cost,
                step=priced.step,
                known_after=priced.known_after,
            )
        except DayBudgetError:
            raise  # what costs more would only be taken for its smaller steps
        except BudgetError as error:
            first = first or error
            continue
        return Choice(best=priced, left_out=tuple(left_out), further_days=further)
    if first is None:  # a broken invariant: there is a usable one
        raise AssertionError("nothing is usable, and nothing said so")
    raise first


def sources_wanted(payloads: Sequence[PayloadTarget], *, recode_max: int = 0) -> dict[str, int]:
    """Return, by part, how many bytes of the booted slot deltas start from.

    Not those that pack more bytes again than `Policy.recode_max`.

    They start from one version, so from one image of each part; where two disagree, one is wrong.
    """
    return {
        part.name: part.size
        for payload in payloads
        if payload.facts.source is not None
        and not (recode_max and (payload.facts.recoded_bytes or 0) > recode_max)
        for part in payload.facts.source.partitions
    }


def differences(facts: PayloadFacts, held: Mapping[str, Held]) -> str:
    """Return where the booted slot is not what a delta starts from, empty where it is."""
    if facts.source is None:
        return ""
    for part in facts.source.partitions:
        found = held.get(part.name)
        if found is None:
            return f"this node has no part {part.name}"
        if not found.sha256:
            return f"part {part.name} of the booted slot cannot be read: {found.why}"
        if (found.size, found.sha256) != (part.size, part.sha256):
            return (
                f"part {part.name} of the booted slot was changed: it has sha256"
                f" {found.sha256[:16]}…, the delta starts from {part.sha256[:16]}…"
            )
    return ""


def named(payload: PayloadTarget) -> str:
    """Name a payload, for people."""
    source = payload.facts.source
    what = "the full payload" if source is None else f"the delta from {source.version}"
    return f"{what} ({mb(payload.size)})"


def _unsuitable(payload: PayloadTarget, held: Mapping[str, Held], policy: Policy) -> str:
    if payload.facts.kind == "full":
        return ""
    if not policy.deltas:
        return f"{named(payload)}: download.deltas is false"
    recoded = payload.facts.recoded_bytes or 0
    if policy.recode_max and recoded > policy.recode_max:
        return (
            f"{named(payload)}: it packs {mb(recoded)} again, download.recode_max_mib allows"
            f" {mb(policy.recode_max)}"
        )
    why = differences(payload.facts, held)
    return f"{named(payload)}: {why}" if why else ""


def _after(spoiled: Spoiled) -> str:
    return f" after {mb(spoiled.cost)}" if spoiled.cost else ""


def _order(priced: Priced) -> tuple[int, bool, str]:
    return priced.cost, priced.payload.facts.kind == "delta", priced.payload.path
