"""Words for what machines say: events, ages, sizes. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

EVENT_WORDS: Final[Mapping[tuple[int, int], str]] = MappingProxyType({
    (13, 1): "download started",
    (14, 1): "downloaded",
    (3, 1): "installed",
    (800, 1): "installed",
    (3, 2): "update complete",
    (3, 0): "failed",
    (3, 9): "deferred",
    (13, 0): "download failed",
    (14, 0): "download failed",
})  # fmt: skip

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))


def event_words(event_type: int, result: int) -> str:
    """Return what an event means in two words."""
    return EVENT_WORDS.get((event_type, result), f"event {event_type}/{result}")


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago something was, such as `3 minutes ago`."""
    return f"{span(now - moment)} ago" if now > moment else "now"


def span(length: timedelta) -> str:
    """Return a length of time in its largest unit, such as `3 minutes`."""
    seconds = int(length.total_seconds())
    for size, name in _UNITS:
        if seconds >= size:
            count = seconds // size
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{max(seconds, 0)} s"


def size_words(size: int) -> str:
    """Return a number of bytes for people, such as `81.3 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
