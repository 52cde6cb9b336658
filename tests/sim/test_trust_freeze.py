"""Attacks on time: stale metadata, metadata made to last, and clocks that lie."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.sim.repository import new_node
from updater.trust.errors import (
    ClockBehindError,
    HorizonExceededError,
    TrustExpiredError,
    TrustRollbackError,
    TrustUnreachableError,
)
from updater.trust.floors import load_floors
from updater.trust.limits import CLOCK_TOLERANCE


def test_indefinite_freeze_ends_when_the_timestamp_does(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(days=3, seconds=-1)
    node.refresh()
    node.clock.forward(seconds=2)
    with pytest.raises(TrustExpiredError, match="timestamp version 2 ended"):
        node.refresh()


def test_a_frozen_repository_is_believed_again_when_it_thaws(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(days=30)
    with pytest.raises(TrustExpiredError):
        node.refresh()
    node.repository.publish()
    assert node.refresh().timestamp_expires == node.clock() + timedelta(days=3)


@pytest.mark.parametrize(
    ("days", "resigned", "expired"),
    [
        (4, (), "timestamp"),
        (31, ("snapshot", "timestamp"), "alpha"),
        (181, ("stable", "alpha", "snapshot", "timestamp"), "releases"),
        (366, ("stable", "alpha", "releases", "snapshot", "timestamp"), "root"),
    ],
)
def test_each_role_ends_the_trust_when_it_ends(
    tmp_path: Path, days: int, resigned: tuple[str, ...], expired: str
) -> None:
    node = new_node(tmp_path, "stable", "alpha")
    node.repository.promote("2.0.0", channel="alpha")
    node.refresh("alpha")
    node.clock.forward(days=days)
    if resigned:
        node.repository.publish(*(role for role in resigned if role in node.repository.roles))
    with pytest.raises(TrustExpiredError, match=f"^{expired} version"):
        node.refresh("alpha")


def test_a_snapshot_that_ended_is_refused_under_a_fresh_timestamp(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.clock.forward(days=8)
    node.repository.sign_timestamp()
    with pytest.raises(TrustExpiredError, match=r"^snapshot version"):
        node.refresh()


def test_metadata_that_has_ended_for_the_system_clock_too_is_refused_by_python_tuf(
    tmp_path: Path,
) -> None:
    node = new_node(tmp_path)
    node.repository.sign_timestamp(lifetime=timedelta(seconds=-1))
    with pytest.raises(TrustExpiredError, match=r"timestamp\.json is expired"):
        node.refresh()


def test_an_expired_root_on_the_node_is_no_obstacle_to_a_new_one(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(days=400)
    node.repository.sign_root()
    node.repository.publish("targets", "releases", "stable")
    assert node.refresh().root_version == 2


def test_all_that_the_node_stored_may_have_ended(tmp_path: Path) -> None:
    """Expiry stops new installs only: a node that slept for a year wakes up and goes on."""
    node = new_node(tmp_path)
    repository = node.repository
    repository.sign_root()
    node.refresh()
    ended = timedelta(days=-1)
    stored = node.folder / "current"
    for role, signed, name in (
        ("root", repository.root, "root_history/3.root.json"),
        ("stable", repository.roles["stable"], "stable.json"),
        ("snapshot", repository.snapshot, "snapshot.json"),
        ("timestamp", repository.timestamp, "timestamp.json"),
    ):
        (stored / name).write_bytes(repository.write(role, signed, lifetime=ended))
    repository.sign_root()
    repository.publish("targets", "releases", "stable")
    assert node.refresh().root_version == 4


def test_a_timestamp_for_an_air_gap_is_refused_online(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.sign_timestamp(lifetime=timedelta(days=90))
    with pytest.raises(HorizonExceededError, match="more than 7 days after"):
        node.refresh()


def test_a_timestamp_that_ends_just_within_the_horizon_is_good(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.sign_timestamp(lifetime=timedelta(days=7))
    assert node.refresh().timestamp_expires == node.clock() + timedelta(days=7)


def test_after_a_refused_horizon_the_regular_timestamp_is_believed(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    regular = node.repository.record()
    node.repository.sign_timestamp(lifetime=timedelta(days=90))
    with pytest.raises(HorizonExceededError):
        node.refresh()
    node.repository.replay(regular)
    assert node.refresh().channel.current == "2.0.0"


def test_a_local_source_may_last_and_its_memory_is_shared_with_the_network(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.record()
    node.repository.release("3.0.0")
    node.repository.sign_timestamp(lifetime=timedelta(days=90))
    node.repository.save(tmp_path / "stick")
    url = (tmp_path / "stick" / "metadata").as_uri()
    view = node.client(url=url, horizon=None).refresh("stable", "acme-os", "amd64-usr")
    assert view.channel.current == "3.0.0"
    node.repository.replay(old)
    with pytest.raises(TrustRollbackError):
        node.refresh()


def test_a_timestamp_of_a_bundle_does_not_count_online_even_when_the_node_knows_it(
    tmp_path: Path,
) -> None:
    node = new_node(tmp_path)
    node.repository.sign_timestamp(lifetime=timedelta(days=90))
    node.repository.save(tmp_path / "stick")
    url = (tmp_path / "stick" / "metadata").as_uri()
    node.client(url=url, horizon=None).refresh("stable", "acme-os", "amd64-usr")
    with pytest.raises(HorizonExceededError):
        node.refresh()


def test_a_clock_before_the_image_was_built_is_not_believed(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.clock.now = node.clock.now.replace(year=1970)
    with pytest.raises(ClockBehindError, match="the clock says 1970"):
        node.refresh()
    assert node.fetcher.asked == []


def test_a_clock_set_back_behind_the_last_refresh_is_not_believed(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(days=-1)
    with pytest.raises(ClockBehindError):
        node.refresh()


@pytest.mark.parametrize("lost", ["floors.json", "current"])
def test_a_clock_set_back_is_not_believed_whichever_memory_was_lost(
    tmp_path: Path, lost: str
) -> None:
    node = new_node(tmp_path)
    node.refresh()
    (node.folder / lost).unlink()
    node.clock.forward(days=-1)
    with pytest.raises(ClockBehindError):
        node.refresh()


def test_a_clock_that_ntp_takes_back_a_little_still_serves(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(seconds=-CLOCK_TOLERANCE.total_seconds())
    assert node.refresh().channel.current == "2.0.0"


def test_a_clock_taken_back_a_little_revives_nothing_that_has_ended(tmp_path: Path) -> None:
    """Judged is by the latest time that has certainly passed, not by what the clock says."""
    node = new_node(tmp_path)
    node.clock.forward(days=1)
    node.refresh()
    node.repository.sign_timestamp(lifetime=timedelta(seconds=-60))
    node.clock.forward(seconds=-120)
    with pytest.raises(TrustExpiredError, match="timestamp version 3"):
        node.refresh()


def test_a_clock_that_jumped_ahead_during_a_refused_refresh_does_not_raise_the_floor(
    tmp_path: Path,
) -> None:
    """A broken hardware clock must not lock the node out once it is mended."""
    node = new_node(tmp_path)
    node.refresh()
    node.clock.forward(days=3650)
    with pytest.raises(TrustExpiredError):
        node.refresh()
    node.clock.forward(days=-3650)
    assert node.refresh().channel.current == "2.0.0"


def test_a_dropped_request_for_thirty_days_costs_time_only(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    seen = node.clock()
    node.fetcher.statuses = {"metadata/timestamp.json": 503}
    for _day in range(30):
        node.clock.forward(days=1)
        with pytest.raises(TrustUnreachableError):
            node.refresh()
    assert load_floors(node.folder / "floors.json").time_seen == seen
    node.fetcher.statuses = {}
    node.repository.publish()
    assert node.refresh().channel.current == "2.0.0"
