"""Which release a channel document means for a node."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from images.release import ChannelDocument, DowngradeGrant
from images.version import parse_version
from server.choice import WAIT_MAX_S, Chosen, choose
from server.rollout import Hold

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def document(
    *,
    allowed: tuple[str, ...] = (),
    stops: tuple[str, ...] = (),
    withdrawn: tuple[str, ...] = (),
    not_before: datetime | None = None,
    downgrade: tuple[DowngradeGrant, ...] = (),
) -> ChannelDocument:
    return ChannelDocument(
        channel="stable",
        product="os",
        board="x86",
        serial=1,
        current="3.0.0",
        allowed={v: (f"os/os/x86/{v}/full.crau",) for v in ("3.0.0", *allowed)},
        stops=stops,
        withdrawn=withdrawn,
        not_before=not_before,
        downgrade=downgrade,
    )


def outcome(doc: ChannelDocument, running: str, now: datetime = NOW) -> str:
    chosen = choose(doc, parse_version(running), now)
    return chosen.version if isinstance(chosen, Chosen) else chosen.reason


def test_an_older_node_goes_to_the_current_release() -> None:
    assert outcome(document(), "1.0.0") == "3.0.0"


@pytest.mark.parametrize("running", ["3.0.0", "3.0.0+rebuilt", "3.0.1", "4.0.0"])
def test_a_node_never_goes_to_the_same_or_an_older_release(running: str) -> None:
    assert outcome(document(), running) == "current"


def test_a_withdrawn_release_is_for_nobody() -> None:
    assert outcome(document(withdrawn=("3.0.0",)), "1.0.0") == "withdrawn"


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ("1.0.0", "1.5.0"),
        ("1.5.0", "2.0.0"),
        ("1.6.0", "2.0.0"),
        ("2.0.0", "3.0.0"),
        ("2.5.0", "3.0.0"),
    ],
)
def test_a_stop_is_not_jumped_over(running: str, expected: str) -> None:
    stops = ("1.5.0", "2.0.0")
    assert outcome(document(allowed=stops, stops=stops), running) == expected


def test_a_stop_that_is_not_on_the_channel_holds() -> None:
    assert outcome(document(stops=("2.0.0",)), "1.0.0") == "stop-unavailable"


def test_nothing_is_offered_before_the_channel_opens() -> None:
    opens = NOW + timedelta(minutes=10)
    held = choose(document(not_before=opens), parse_version("1.0.0"), NOW)
    assert isinstance(held, Hold)
    assert (held.reason, held.retry_after_s) == ("not-before", 601)
    assert outcome(document(not_before=opens), "1.0.0", opens) == "3.0.0"


def test_a_far_opening_asks_for_at_most_four_hours_of_patience() -> None:
    held = choose(document(not_before=NOW + timedelta(days=9)), parse_version("1.0.0"), NOW)
    assert isinstance(held, Hold)
    assert held.retry_after_s == WAIT_MAX_S


@pytest.mark.parametrize(
    ("running", "now", "expected"),
    [
        ("4.0.0", NOW, "3.0.0"),
        ("4.0.1", NOW, "current"),
        ("4.0.0", NOW + timedelta(days=1), "current"),
    ],
)
def test_a_node_goes_back_only_by_a_grant_that_names_both_ends(
    running: str, now: datetime, expected: str
) -> None:
    until = NOW + timedelta(days=1)
    grant = DowngradeGrant(from_version="4.0.0", to_version="3.0.0", until=until)
    assert outcome(document(downgrade=(grant,)), running, now) == expected


def test_a_grant_to_another_release_than_the_current_one_does_nothing() -> None:
    grant = DowngradeGrant(from_version="4.0.0", to_version="2.0.0", until=NOW + timedelta(days=1))
    assert outcome(document(downgrade=(grant,)), "4.0.0") == "current"
