"""Which release a channel document means for a node. Values and a time in, a version out."""

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
    chosen = _newer(document, running, now)
    if isinstance(chosen, Hold):
        return chosen
    if chosen.version in document.withdrawn:
        return Hold(reason=WITHDRAWN, sentence=f"release {chosen.version} was withdrawn")
    if document.not_before is not None and now < document.not_before:
        wait = int((document.not_before - now).total_seconds()) + 1
        return Hold(
            reason=NOT_BEFORE,
            sentence=f"release {chosen.version} opens at {document.not_before.isoformat()}",
            retry_after_s=min(wait, WAIT_MAX_S),
        )
    return chosen


def _newer(document: ChannelDocument, running: Version, now: datetime) -> Choice:
    current = parse_version(document.current)
    if running < current:
        return _next_stop(document, running, current)
    if running > current and _may_go_back(document, running, now):
        return Chosen(document.current)
    return Hold(reason=CURRENT, sentence=f"{running.text} is not older than {document.current}")


def _next_stop(document: ChannelDocument, running: Version, current: Version) -> Choice:
    between = (stop for stop in map(parse_version, document.stops) if running < stop < current)
    lowest = min(between, default=None)
    if lowest is None:
        return Chosen(document.current)
    if lowest.text not in document.allowed:
        return Hold(
            reason=STOP_UNAVAILABLE,
            sentence=f"version {lowest.text} may not be jumped over and is not on the channel",
        )
    return Chosen(lowest.text)


def _may_go_back(document: ChannelDocument, running: Version, now: datetime) -> bool:
    return any(
        parse_version(grant.from_version) == running
        and grant.to_version == document.current
        and now < grant.until
        for grant in document.downgrade
    )
