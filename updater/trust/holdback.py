"""The one attack that TUF alone does not show: a director that lies by silence.

Omaha may say `noupdate` as long as it likes, but the signed channel document names what is
current. When it has named something newer for too long, the node raises an alarm; it installs
nothing by itself. Pure: the caller keeps the instant and reads the clock (trust.md 3.4, 2).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from images.release import ChannelDocument
from images.version import parse_version
from updater.trust.limits import MAX_HOLDBACK


def newer_since(
    channel: ChannelDocument, running: str, *, since: datetime | None, now: datetime
) -> datetime | None:
    """Return since when `channel` names a version above `running` that may be installed.

    Args:
        channel: the document of the last refresh.
        running: the version of the running image.
        since: what the last call returned; None at first, and after each update.
        now: the time, with zone.

    Returns:
        An instant to remember until the next call, or None while there is nothing newer.
    """
    starts = channel.not_before or now
    if parse_version(channel.current) <= parse_version(running) or starts > now:
        return None
    return now if since is None else min(since, now)


def is_held_back(
    since: datetime | None, *, now: datetime, max_holdback: timedelta = MAX_HOLDBACK
) -> bool:
    """Tell whether something newer has been held back for longer than `max_holdback`."""
    return since is not None and now - since > max_holdback
