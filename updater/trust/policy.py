"""Whether this node may install a release now: values and a time in, a verdict out.

Nothing here reads a file, a socket or a clock, and neither tuf nor requests is loaded. What the
view holds was verified by `refresh`; what the offer holds is believed in nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from images.errors import VersionInvalidError
from images.release import ChannelDocument
from images.version import Version, parse_version
from updater.trust.errors import (
    NotBeforeError,
    NothingNewerError,
    NotInChannelError,
    NotNewerError,
    PinnedError,
    StopSkippedError,
    VersionDeniedError,
    WithdrawnError,
    WrongBoardError,
    WrongChannelError,
    WrongProductError,
)
from updater.trust.suitable import Candidate, check_offer, installable, shown
from updater.trust.view import Identity, Offer, TrustedView, VerifiedRelease


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """All that steps 4 to 8 look at."""

    channel: ChannelDocument
    running: Version
    candidate: Version
    steered: bool  # Omaha or a person named the candidate, the channel did not
    denied: frozenset[Version]
    now: datetime
    forced: bool


def choose(
    view: TrustedView,
    identity: Identity,
    *,
    floor: int,
    denied: Collection[str],
    offer: Offer | None,
    now: datetime,
    pinned: str | None = None,
    forced: bool = False,
) -> VerifiedRelease:
    """Return the release that this node may install now.

    1. The channel document is of the node's channel, product and board.
    2. The candidate is the pinned version, else the offered one, else, for a node that is alone,
       the channel's `current` or the first stop on the way to it. A node that runs the pinned
       version wants nothing, whether or not the channel still allows it.
    3. The channel allows it.
    4. It is above the running version, or a downgrade grant names both and has not ended.
    5. The document is in force.
    6. It is not withdrawn.
    7. It did not fail here before.
    8. No stop between the running version and it is jumped over.
    9. At least one payload is for this node (product, board, version), of a kind it installs, for
       its engine and running version, at or above the floor; all such make the same image.
    10. What Omaha says of a file is what was signed of that file.

    Args:
        view: what the last refresh verified.
        identity: who asks.
        floor: the lowest rollback index this node accepts: the highest of the running image's and
            the remembered one. The channel's own floor is added here.
        denied: versions that failed here or that a person rolled back from.
        offer: Omaha's answer, or None for a node that is alone.
        now: the time, with zone.
        pinned: the only version a person wants, or None.
        forced: a person insists: lifts step 7, and lets step 4 take the running version again.

    Raises:
        NothingNewerError: the node runs what it shall run (exit status 4).
        PolicyError: a refusal, with its code.
    """
    channel = view.channel
    _check_channel(channel, identity)
    running = parse_version(identity.version)
    wanted = _candidate(channel, running, offer=offer, pinned=pinned)
    if pinned == identity.version and not forced:
        raise NothingNewerError(f"version {running} is running, and no other is wanted")
    if wanted not in channel.allowed:
        raise NotInChannelError(
            f"version {shown(wanted)} is not among those that channel {channel.channel}"
            f" serial {channel.serial} allows"
        )
    case = _Case(
        channel=channel,
        running=running,
        candidate=parse_version(wanted),
        steered=offer is not None or pinned is not None,
        denied=_versions(denied),
        now=now,
        forced=forced,
    )
    for step in _STEPS:
        step(case)
    candidate = Candidate(
        text=wanted,
        view=view,
        node=identity,
        running=running,
        floor=max(floor, channel.rollback_floor),
    )
    payloads = installable(candidate)
    if offer is not None:
        check_offer(offer, candidate)
    return VerifiedRelease(
        version=wanted,
        rollback_index=payloads[0].facts.rollback_index,
        payloads=payloads,
        channel_serial=channel.serial,
    )


def alone(channel: ChannelDocument, running: Version) -> str:
    """Return the version that a node takes from `channel` when no one steers it.

    It is `current`, or the lowest stop above `running` when that comes first.
    """
    stop = _next_stop(channel, running)
    if stop is None or stop >= parse_version(channel.current):
        return channel.current
    return next((text for text in channel.allowed if parse_version(text) == stop), stop.text)


def _check_channel(channel: ChannelDocument, node: Identity) -> None:
    """Step 1: a document that contradicts its path is a mistake, or a trick."""
    if channel.channel != node.channel:
        raise WrongChannelError(
            f"the channel document is of {channel.channel}, this node follows {node.channel}"
        )
    if channel.product != node.product:
        raise WrongProductError(
            f"the channel document is of product {channel.product}, this node is {node.product}"
        )
    if channel.board != node.board:
        raise WrongBoardError(
            f"the channel document is for board {channel.board}, this node is {node.board}"
        )


def _candidate(
    channel: ChannelDocument, running: Version, *, offer: Offer | None, pinned: str | None
) -> str:
    """Step 2: one version, still a mere wish."""
    if pinned is None:
        return alone(channel, running) if offer is None else offer.version
    if offer is not None and offer.version != pinned:
        raise PinnedError(
            f"Omaha offers {shown(offer.version)}, this node is pinned to {shown(pinned)}"
        )
    return pinned


def _is_upward(case: _Case) -> None:
    """Step 4: up, or down by a grant, or the same again when a person insists."""
    if case.candidate > case.running or _is_granted(case):
        return
    if case.candidate == case.running:
        if case.forced:
            return
        raise NothingNewerError(f"version {case.running} is running, nothing newer is wanted")
    if not case.steered:
        raise NothingNewerError(
            f"version {case.running} is running, above {case.candidate} of"
            f" channel {case.channel.channel}"
        )
    raise NotNewerError(
        f"version {case.candidate} is below the running {case.running},"
        " and no downgrade grant in force names both"
    )


def _is_granted(case: _Case) -> bool:
    return any(
        parse_version(grant.from_version) == case.running
        and parse_version(grant.to_version) == case.candidate
        and case.now < grant.until
        for grant in case.channel.downgrade
        if case.candidate < case.running
    )


def _is_in_force(case: _Case) -> None:
    """Step 5."""
    starts = case.channel.not_before
    if starts is not None and case.now < starts:
        raise NotBeforeError(
            f"channel {case.channel.channel} serial {case.channel.serial} is in force from"
            f" {starts.isoformat()}, now is {case.now.isoformat()}"
        )


def _is_not_withdrawn(case: _Case) -> None:
    """Step 6: versions are compared, so that another spelling does not slip through."""
    if case.candidate in _versions(case.channel.withdrawn):
        raise WithdrawnError(f"version {case.candidate} was withdrawn")


def _is_not_denied(case: _Case) -> None:
    """Step 7."""
    if case.candidate in case.denied and not case.forced:
        raise VersionDeniedError(f"version {case.candidate} failed on this node before")


def _jumps_no_stop(case: _Case) -> None:
    """Step 8: only on the way up."""
    stop = _next_stop(case.channel, case.running)
    if stop is not None and stop < case.candidate:
        raise StopSkippedError(
            f"the way from {case.running} to {case.candidate} must stop at {stop}"
        )


def _next_stop(channel: ChannelDocument, running: Version) -> Version | None:
    return min((stop for stop in _versions(channel.stops) if stop > running), default=None)


def _versions(texts: Iterable[str]) -> frozenset[Version]:
    """Return those that are versions; a remembered text that is none can match nothing."""
    found = set()
    for text in texts:
        try:
            found.add(parse_version(text))
        except VersionInvalidError:
            continue
    return frozenset(found)


_STEPS: Final[tuple[Callable[[_Case], None], ...]] = (
    _is_upward,  # 4
    _is_in_force,  # 5
    _is_not_withdrawn,  # 6
    _is_not_denied,  # 7
    _jumps_no_stop,  # 8
)
