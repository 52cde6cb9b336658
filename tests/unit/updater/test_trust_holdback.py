"""A director that lies by silence becomes visible."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from images.release import parse_channel_document
from tests.sim.repository import make_channel
from updater.trust.holdback import is_held_back, newer_since

NOW = datetime(2026, 11, 23, tzinfo=UTC)
CHANNEL = parse_channel_document(make_channel(current="2.0.0"))


def test_hold_back_by_the_director_is_an_alarm_after_fourteen_days() -> None:
    since = None
    alarms = []
    for day in range(16):
        now = NOW + timedelta(days=day)
        since = newer_since(CHANNEL, "1.0.0", since=since, now=now)  # Omaha: noupdate, again
        alarms.append(is_held_back(since, now=now))
    assert alarms == [False] * 15 + [True]


def test_a_node_at_current_or_above_is_not_held_back() -> None:
    for running in ("2.0.0", "2.0.1"):
        assert newer_since(CHANNEL, running, since=NOW, now=NOW + timedelta(days=99)) is None
    assert not is_held_back(None, now=NOW)


def test_a_document_that_is_not_in_force_yet_holds_nothing_back() -> None:
    later = parse_channel_document(make_channel(not_before="2026-12-01T00:00:00Z"))
    assert newer_since(later, "1.0.0", since=None, now=NOW) is None
    assert newer_since(later, "1.0.0", since=None, now=NOW + timedelta(days=9)) is not None


def test_a_second_release_does_not_start_the_time_anew() -> None:
    newer = parse_channel_document(make_channel(current="3.0.0"))
    later = NOW + timedelta(days=10)
    assert newer_since(newer, "1.0.0", since=NOW, now=later) == NOW
