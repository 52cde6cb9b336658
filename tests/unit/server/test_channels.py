"""Channels: created, promoted, withdrawn from."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from images.errors import DocumentInvalidError, VersionInvalidError
from images.release import ChannelDocument
from server.channels import create_channel, promote_channel, set_base_urls, withdraw_release
from server.desk import Desk
from server.errors import (
    BelowFloorError,
    ChannelExistsError,
    ChannelUnknownError,
    DowngradeUnboundedError,
    FloorLoweredError,
    KeyOverwriteError,
    KeysMissingError,
    NameInvalidError,
    ReleaseUnknownError,
    ReleaseWithdrawnError,
    StopsMissingError,
)
from server.promotion import Promotion
from server.queries import channels
from server.reflection import published_documents
from tests.sim.desk import BOARD, PRODUCT, Clock, order, promote, publish


def signed(desk: Desk, wanted: Promotion) -> ChannelDocument:
    """Promote, and return what is really published."""
    document = promote_channel(desk, wanted, keys=desk.offline())
    assert published_documents(desk, desk.repository.read()) == [document]
    return document


def test_the_first_promotion_names_one_release(desk: Desk) -> None:
    publish(desk, "1.0.0")
    document = signed(desk, order("1.0.0"))
    assert document == ChannelDocument(
        channel="stable",
        product=PRODUCT,
        board=BOARD,
        serial=1,
        current="1.0.0",
        allowed={"1.0.0": (f"os/{PRODUCT}/{BOARD}/1.0.0/full.crau",)},
    )


def test_each_promotion_raises_the_serial(desk: Desk) -> None:
    publish(desk, "1.0.0")
    assert [promote(desk, "1.0.0").serial for _ in range(3)] == [1, 2, 3]


def test_the_release_before_stays_allowed_when_asked_for(desk: Desk) -> None:
    for version in ("1.0.0", "2.0.0"):
        publish(desk, version)
    promote(desk, "1.0.0")
    assert set(signed(desk, replace(order("2.0.0"), keep_previous=True)).allowed) == {
        "1.0.0",
        "2.0.0",
    }
    assert set(promote(desk, "2.0.0").allowed) == {"2.0.0"}


def test_floor_stops_and_withdrawals_are_carried_over(desk: Desk) -> None:
    for version in ("1.0.0", "1.5.0", "2.0.0", "3.0.0"):
        publish(desk, version, rollback_index=2)
    promote(desk, "1.0.0")
    withdraw_release(desk, "1.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline())
    signed(desk, replace(order("2.0.0"), rollback_floor=2, add_stops=("1.5.0",)))
    document = signed(desk, order("3.0.0"))
    assert document.rollback_floor == 2
    assert document.withdrawn == ("1.0.0",)
    assert document.stops == ("1.5.0",)
    assert set(document.allowed) == {"1.5.0", "3.0.0"}
    after = signed(desk, replace(order("3.0.0"), remove_stops=("1.5.0",)))
    assert (after.stops, set(after.allowed)) == ((), {"3.0.0"})


def test_opening_time_and_leave_to_go_back_hold_for_one_promotion(desk: Desk, clock: Clock) -> None:
    publish(desk, "1.0.0")
    later = clock.now + timedelta(days=1)
    wanted = replace(order("1.0.0"), not_before=later, downgrade_from="2.0.0", until=later)
    document = signed(desk, wanted)
    assert document.not_before == later
    (grant,) = document.downgrade
    assert (grant.from_version, grant.to_version, grant.until) == ("2.0.0", "1.0.0", later)
    plain = signed(desk, order("1.0.0"))
    assert (plain.not_before, plain.downgrade) == (None, ())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": "9.0.0"}, ReleaseUnknownError),
        ({"version": "nine"}, VersionInvalidError),
        ({"channel": "nightly"}, ChannelUnknownError),
        ({"channel": "releases"}, ChannelUnknownError),
        ({"board": "other"}, ReleaseUnknownError),
        ({"rollback_floor": 4}, BelowFloorError),
        ({"rollback_floor": 1}, FloorLoweredError),
        ({"add_stops": ("1.5.0",)}, StopsMissingError),
        ({"add_stops": ("no",)}, VersionInvalidError),
        ({"downgrade_from": "2.0.0"}, DowngradeUnboundedError),
    ],
)
def test_an_order_that_does_not_fit_changes_nothing(
    desk: Desk, changes: dict[str, object], error: type[Exception]
) -> None:
    publish(desk, "2.0.0", rollback_index=3)
    before = promote_channel(desk, replace(order("2.0.0"), rollback_floor=2), keys=desk.offline())
    wanted = replace(order("2.0.0"), **changes)  # type: ignore[arg-type]
    with pytest.raises(error):
        promote_channel(desk, wanted, keys=desk.offline())
    assert published_documents(desk, desk.repository.read()) == [before]


def test_a_name_of_a_wrong_shape_is_refused(desk: Desk) -> None:
    with pytest.raises((DocumentInvalidError, ReleaseUnknownError)):
        promote_channel(desk, replace(order("1.0.0"), product="a/b"), keys=desk.offline())


def test_a_withdrawn_release_stays_withdrawn(desk: Desk) -> None:
    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    (document,) = withdraw_release(
        desk, "1.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline()
    )
    assert (document.serial, document.withdrawn) == (2, ("1.0.0",))
    with pytest.raises(ReleaseWithdrawnError):
        promote(desk, "1.0.0")


def test_a_release_is_withdrawn_from_every_channel_that_allows_it_in_one_publish(
    desk: Desk,
) -> None:
    create_channel(desk, "beta", keys=desk.offline())
    publish(desk, "1.0.0")
    for name in ("stable", "beta"):
        promote(desk, "1.0.0", channel=name)
    before = desk.repository.read().timestamp.signed.version
    documents = withdraw_release(
        desk, "1.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline()
    )
    assert sorted(document.channel for document in documents) == ["beta", "stable"]
    assert desk.repository.read().timestamp.signed.version == before + 1


def test_what_no_channel_allows_cannot_be_withdrawn(desk: Desk) -> None:
    publish(desk, "1.0.0")
    with pytest.raises(ReleaseUnknownError, match=r"no channel allows release 1\.0\.0"):
        withdraw_release(
            desk, "1.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline()
        )
    with pytest.raises(ChannelUnknownError):
        withdraw_release(
            desk, "1.0.0", product=PRODUCT, board=BOARD, channels=("no",), keys=desk.offline()
        )


def test_a_new_channel_has_its_keys_and_its_place(desk: Desk) -> None:
    create_channel(desk, "beta", keys=desk.offline())
    contents = desk.repository.read()
    keys, threshold = contents.keys_of("beta")
    assert (len(keys), threshold) == (2, 1)
    assert (desk.folder / "keys/offline/beta-2.pem").is_file()
    publish(desk, "1.0.0")
    assert promote(desk, "1.0.0", channel="beta").channel == "beta"
    with desk.store.reading() as connection:
        assert [view.name for view in channels(connection)] == ["beta", "stable"]


def test_keys_of_a_channel_can_be_counted_by_hand(desk: Desk) -> None:
    create_channel(desk, "nightly", keys=desk.offline(), key_count=4, threshold=3)
    keys, threshold = desk.repository.read().keys_of("nightly")
    assert (len(keys), threshold) == (4, 3)
    with pytest.raises(NameInvalidError, match="1 keys cannot need 2"):
        create_channel(desk, "odd", keys=desk.offline(), key_count=1, threshold=2)


@pytest.mark.parametrize(
    "name",
    ["root", "targets", "snapshot", "timestamp", "releases", "Stable", "1st", "a/b", "", "é"],
)
def test_a_channel_cannot_take_the_name_of_a_role_or_a_path(desk: Desk, name: str) -> None:
    with pytest.raises(NameInvalidError):
        create_channel(desk, name, keys=desk.offline())


def test_a_channel_is_made_once(desk: Desk) -> None:
    with pytest.raises(ChannelExistsError):
        create_channel(desk, "stable", keys=desk.offline())


def test_without_the_keys_of_targets_no_key_file_is_made(desk: Desk) -> None:
    for number in (1, 2):
        (desk.folder / f"keys/offline/targets-{number}.pem").unlink()
    with pytest.raises(KeysMissingError, match="role targets"):
        create_channel(desk, "beta", keys=desk.offline())
    assert not list((desk.folder / "keys/offline").glob("beta-*"))


def test_keys_left_by_a_creation_that_was_cut_short_are_not_overwritten(desk: Desk) -> None:
    desk.offline().generate("beta", 1)
    with pytest.raises(KeyOverwriteError):
        create_channel(desk, "beta", keys=desk.offline())


def test_base_urls_are_plain_http(desk: Desk) -> None:
    set_base_urls(desk, "stable", ["https://cdn.example/os/", "http://mirror.example"])
    with desk.store.reading() as connection:
        (view,) = channels(connection)
    assert view.base_urls == ("https://cdn.example/os/", "http://mirror.example")
    for url in ("ftp://x", "https://user@host/", "https://a b/", "javascript:alert(1)"):
        with pytest.raises(NameInvalidError):
            set_base_urls(desk, "stable", [url])
    with pytest.raises(ChannelUnknownError):
        set_base_urls(desk, "nightly", [])
