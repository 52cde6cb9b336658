"""When to ask again: arithmetic on values. No clock, no chance, no I/O of its own."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from updater.settings import ServerSettings

BACKOFF_MAX: Final = timedelta(hours=4)
SERVER_HINT_MAX: Final = timedelta(hours=24)  # a server may slow a node down, not switch it off


def next_check(
    now: datetime, *, interval: timedelta, jitter_share: float, chance: float, failures: int
) -> datetime:
    """Return when to ask again: the interval, doubled with each failure, and jittered.

    Args:
        now: the time.
        interval: the usual pause.
        jitter_share: how much of the pause is up to chance, 0 to 1.
        chance: in [0, 1).
        failures: failed checks in a row.
    """
    pause = min(interval * (1 << min(failures, 16)), max(BACKOFF_MAX, interval))
    return now + pause * (1 + jitter_share * (2 * chance - 1))


def longest_pause(server: ServerSettings) -> timedelta:
    """Return the longest pause that `next_check` and a server's hint can come to."""
    interval = timedelta(seconds=server.poll_interval_secs)
    return max(interval, BACKOFF_MAX, SERVER_HINT_MAX) * (1 + server.poll_jitter_share)


def first_check(server: ServerSettings, boot_id: str) -> timedelta:
    """Return the uptime of the first check: jittered, and the same for all of one boot."""
    chance = zlib.crc32(boot_id.encode()) / 2**32
    return timedelta(seconds=server.first_check_secs) * (
        1 + server.poll_jitter_share * (2 * chance - 1)
    )
