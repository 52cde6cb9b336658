"""The next document of a channel, from the one before and an order. Pure; signing is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from images.release import ChannelDocument, DowngradeGrant
from images.version import parse_version
from server.catalogue import delta_source
from server.errors import (
    BelowFloorError,
    DowngradeUnboundedError,
    FloorLoweredError,
    ReleaseUnknownError,
    ReleaseWithdrawnError,
    StopsMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a promotion needs to know of a release.

    Attributes:
        rollback_index: what nodes compare with the floor.
        paths: TUF paths of its payloads.
    """

    rollback_index: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a person orders for a channel.

    Attributes:
        channel: which channel.
        product: for which product.
        board: for which board.
        version: what nodes shall run.
        keep_previous: whether the release before stays allowed.
        rollback_floor: the new floor; None keeps the one before.
        not_before: nothing is installed earlier; None for at once.
        add_stops: versions that may not be jumped over, on top of those before.
        remove_stops: versions that may be jumped over again.
        downgrade_from: a newer version that may go back to this one; with `until`.
        until: when that leave ends.
    """

    channel: str
    product: str
    board: str
    version: str
    keep_previous: bool = False
    rollback_floor: int | None = None
    not_before: datetime | None = None
    add_stops: tuple[str, ...] = ()
    remove_stops: tuple[str, ...] = ()
    downgrade_from: str | None = None
    until: datetime | None = None


def promote(
    before: ChannelDocument | None, order: Promotion, releases: Mapping[str, Published]
) -> ChannelDocument:
    """Return the document that follows `before`.

    Floor, stops and withdrawals are carried over; `not_before` and leave to go back are not.

    Args:
        before: the document now; None for the first.
        order: what a person wants.
        releases: what is published for the product and board, by version.

    Raises:
        ReleaseUnknownError: the version is not published.
        ReleaseWithdrawnError: it was withdrawn.
        FloorLoweredError: the floor would go down.
        BelowFloorError: the release, or a stop, lies below the floor.
        StopsMissingError: a stop is not published.
        DowngradeUnboundedError: leave to go back without an end, or an end without a leave.
        VersionInvalidError: a version is not of the right shape.
        msgspec.ValidationError: a name is not of the right shape.
    """
    parse_version(order.version)
    withdrawn = before.withdrawn if before else ()
    if order.version in withdrawn:
        raise ReleaseWithdrawnError(f"release {order.version} was withdrawn from {order.channel}")
    floor = _floor(before, order)
    stops = _stops(before, order)
    allowed = {order.version: _allowed(order.version, floor, releases)}
    for stop in stops:
        if parse_version(stop) < parse_version(order.version):
            allowed[stop] = _allowed_stop(stop, floor, releases)
    if order.keep_previous and before is not None:
        _keep(allowed, before.current, floor, releases, withdrawn)
    return msgspec.convert(
        {
            "channel": order.channel,
            "product": order.product,
            "board": order.board,
            "serial": before.serial + 1 if before else 1,
            "current": order.version,
            "allowed": allowed,
            "rollback_floor": floor,
            "withdrawn": withdrawn,
            "stops": stops,
            "not_before": order.not_before,
            "downgrade": _downgrade(order),
        },
        ChannelDocument,
    )


def withdraw(before: ChannelDocument, version: str) -> ChannelDocument:
    """Return the document that follows `before` when `version` must not be installed any more.

    Its deltas are not allowed any more either; deltas from it stay: they are the way out of it.
    """
    if version in before.withdrawn:
        return before
    allowed = dict(before.allowed)
    if version in allowed:
        paths = tuple(path for path in allowed[version] if not delta_source(path))
        allowed[version] = paths or allowed[version]
    return msgspec.structs.replace(
        before,
        serial=before.serial + 1,
        allowed=allowed,
        withdrawn=(*before.withdrawn, version),
    )


def _floor(before: ChannelDocument | None, order: Promotion) -> int:
    floor = before.rollback_floor if before else 0
    if order.rollback_floor is None:
        return floor
    if order.rollback_floor < floor:
        raise FloorLoweredError(
            f"channel {order.channel} has rollback floor {floor}, not {order.rollback_floor}"
        )
    return order.rollback_floor


def _stops(before: ChannelDocument | None, order: Promotion) -> tuple[str, ...]:
    kept = {*(before.stops if before else ()), *order.add_stops} - {*order.remove_stops}
    return tuple(sorted(kept, key=parse_version))


def _allowed(version: str, floor: int, releases: Mapping[str, Published]) -> tuple[str, ...]:
    release = releases.get(version)
    if release is None:
        raise ReleaseUnknownError(f"release {version} is not published for this product and board")
    if release.rollback_index < floor:
        raise BelowFloorError(
            f"release {version} has rollback index {release.rollback_index}, the floor is {floor}"
        )
    return release.paths


def _allowed_stop(version: str, floor: int, releases: Mapping[str, Published]) -> tuple[str, ...]:
    if version not in releases:
        raise StopsMissingError(f"version {version} may not be jumped over and is not published")
    return _allowed(version, floor, releases)


def _keep(
    allowed: dict[str, tuple[str, ...]],
    version: str,
    floor: int,
    releases: Mapping[str, Published],
    withdrawn: tuple[str, ...],
) -> None:
    """Leave the release before in place, unless no node may take it any more."""
    release = releases.get(version)
    if release is not None and release.rollback_index >= floor and version not in withdrawn:
        allowed.setdefault(version, release.paths)


def _downgrade(order: Promotion) -> tuple[DowngradeGrant, ...]:
    if order.downgrade_from is None and order.until is None:
        return ()
    if order.downgrade_from is None or order.until is None:
        raise DowngradeUnboundedError("leave to go back needs both a version and an end")
    parse_version(order.downgrade_from)
    return (
        DowngradeGrant(
            from_version=order.downgrade_from, to_version=order.version, until=order.until
        ),
    )
