"""Which release a channel document means for a client. Values and a time in, versions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from images.version import Version, parse_version
from server.rollout import CURRENT, NOT_BEFORE, STOP_UNAVAILABLE, WITHDRAWN, Hold

if TYPE_CHECKING:
    from datetime import datetime

    from images.release import ChannelDocument

WAIT_MAX_S: Final = 4 * 3600  # stock engines cut longer waits to 4 h as well


@dataclass(frozen=True, slots=True)
class Chosen:
    """The node should run `version` next."""

    version: str


Choice: TypeAlias = Chosen | Hold


def choose(document: ChannelDocument, running: Version, now: datetime) -> Choice:
    """Return the version that a node running `running` should go to, or why none.

    Never an older one, except by a downgrade grant that names both ends and has not ended; never
    past a stop. Who may have it is not decided here.
    """
    versions = _way(document, running, now)
    if isinstance(versions, Hold):
        return versions
    return _closed(document, versions[0], now) or Chosen(versions[0])


def choose_way(
    document: ChannelDocument, running: Version, now: datetime
) -> tuple[str, ...] | Hold:
    """Return every version from `running` to the current one that may not be jumped over.

    Oldest first, the current one last; or why a follower must wait. For servers that follow this
    one: they hand the versions on one at a time.
    """
    versions = _way(document, running, now)
    if isinstance(versions, Hold):
        return versions
    closed = (_closed(document, version, now) for version in versions)
    return next((hold for hold in closed if hold is not None), versions)


def _way(document: ChannelDocument, running: Version, now: datetime) -> tuple[str, ...] | Hold:
    current = parse_version(document.current)
    if running < current:
        stops = (stop for stop in map(parse_version, document.stops) if running < stop < current)
        return (*(stop.text for stop in sorted(stops)), document.current)
    if running > current and _may_go_back(document, running, now):
        return (document.current,)
    return Hold(reason=CURRENT, sentence=f"{running.text} is not older than {document.current}")


def _closed(document: ChannelDocument, version: str, now: datetime) -> Hold | None:
    """Return why nobody may go to `version` now, or None."""
    if version not in document.allowed:
        return Hold(
            reason=STOP_UNAVAILABLE,
            sentence=f"version {version} may not be jumped over and is not on the channel",
        )
    if version in document.withdrawn:
        return Hold(reason=WITHDRAWN, sentence=f"release {version} was withdrawn")
    if document.not_before is not None and now < document.not_before:
        wait = int((document.not_before - now).total_seconds()) + 1
        return Hold(
            reason=NOT_BEFORE,
            sentence=f"release {version} opens at {document.not_before.isoformat()}",
            retry_after_s=min(wait, WAIT_MAX_S),
        )
    return None


def _may_go_back(document: ChannelDocument, running: Version, now: datetime) -> bool:
    return any(
        parse_version(grant.from_version) == running
        and grant.to_version == document.current
        and now < grant.until
        for grant in document.downgrade
    )
