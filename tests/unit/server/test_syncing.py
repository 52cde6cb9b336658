"""Servers that follow this one: every version on the way, and no place taken."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from server import queries
from server.channels import promote_channel, withdraw_release
from server.desk import Desk
from server.omaha import OmahaDesk
from server.steering import create_group, pause_group, set_group
from tests.sim.desk import (
    BOARD,
    PRODUCT,
    STOCK,
    Clock,
    SimNode,
    omaha_of,
    order,
    promote,
    publish,
)
from updater.omaha import AppRequest, Event, Request, UpdateCheck, UpdateCheckResult


def both_formats(desk: Desk, *versions: str) -> None:
    for version in versions:
        publish(desk, version)
        publish(desk, version, container=1)


@pytest.fixture
def omaha(desk: Desk) -> OmahaDesk:
    """A channel on 4.0.0 that no node may reach but by way of 2.0.0 and 3.0.0."""
    both_formats(desk, "2.0.0", "3.0.0", "4.0.0")
    promotion = replace(order("4.0.0"), add_stops=("2.0.0", "3.0.0"))
    promote_channel(desk, promotion, keys=desk.offline())
    return omaha_of(desk)


def sync(
    omaha: OmahaDesk, version: str, *, several: bool = True, group: str = "default"
) -> UpdateCheckResult:
    app = AppRequest(
        app_id=f"{{{PRODUCT}}}",
        version=version,
        track=group,
        machine_id="{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}",
        multi_manifest_ok=several,
        update_check=UpdateCheck(),
    )
    request = Request(apps=(app,), version="CoreOSUpdateEngine-0.1.0.0")
    check = omaha.answer(request).apps[0].update_check
    assert check is not None
    return check


def test_a_follower_gets_every_version_on_the_way_oldest_first(omaha: OmahaDesk) -> None:
    manifests = sync(omaha, "1.0.0").manifests
    assert [(m.version, m.is_floor, bool(m.floor_reason), m.is_target) for m in manifests] == [
        ("2.0.0", True, True, False),
        ("3.0.0", True, True, False),
        ("4.0.0", False, False, True),
    ]


def test_a_follower_gets_payloads_that_stock_engines_read(omaha: OmahaDesk) -> None:
    with omaha.desk.store.reading() as connection:
        stock = {
            payload.sha256
            for release in queries.releases(connection)
            for payload in release.payloads
            if payload.format == 1
        }
    manifests = sync(omaha, "1.0.0").manifests
    assert {m.packages[0].sha256 for m in manifests} == stock
    assert all(m.postinstall and m.postinstall.sha256 == m.packages[0].sha256 for m in manifests)


def test_a_follower_that_reads_one_manifest_gets_nothing_while_a_stop_is_in_the_way(
    omaha: OmahaDesk,
) -> None:
    held = sync(omaha, "1.0.0", several=False)
    assert (held.status, held.reason, held.manifests) == ("noupdate", "stop-between", ())
    (manifest,) = sync(omaha, "3.0.0", several=False).manifests
    assert (manifest.version, manifest.is_floor, manifest.is_target) == ("4.0.0", False, False)


def test_a_node_gets_one_version_at_a_time_whatever_it_says_it_reads(omaha: OmahaDesk) -> None:
    node = SimNode("a" * 32, agent=STOCK, state="")
    for version, then in (("1.0.0", "2.0.0"), ("2.0.0", "3.0.0"), ("3.0.0", "4.0.0")):
        asked = replace(node, version=version).request(check=True)
        app = replace(asked.apps[0], multi_manifest_ok=True)
        check = omaha.answer(replace(asked, apps=(app,))).apps[0].update_check
        assert check is not None
        assert [(m.version, m.is_floor, m.is_target) for m in check.manifests] == [
            (then, False, False)
        ]


def test_a_follower_is_no_node_and_takes_no_place(omaha: OmahaDesk) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"max_concurrent": 1})
    assert sync(omaha, "1.0.0").status == "ok"
    with omaha.desk.store.reading() as connection:
        assert queries.nodes(connection) == []
    assert SimNode("a" * 32).ask(omaha).status == "ok"
    assert sync(omaha, "1.0.0").status == "ok"


def test_a_follower_needs_no_share_but_waits_with_a_paused_group(omaha: OmahaDesk) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"share_percent": 1.0})
    assert sync(omaha, "1.0.0").status == "ok"
    pause_group(omaha.desk, "default", reason="holiday")
    assert sync(omaha, "1.0.0").reason == "rollout-paused"


@pytest.mark.parametrize("bad", ["2.0.0", "3.0.0", "4.0.0"])
def test_a_release_that_proved_bad_anywhere_on_the_way_is_not_handed_on(
    omaha: OmahaDesk, bad: str
) -> None:
    node = SimNode("a" * 32)
    node.tell(omaha, Event(type=3, result=0, bascule_code="trial-unhealthy", next_version=bad))
    assert sync(omaha, "1.0.0").reason == "rollout-stopped"
    if bad != "4.0.0":
        assert sync(omaha, bad).status == "ok"


def test_a_withdrawn_stop_holds_a_follower(omaha: OmahaDesk) -> None:
    withdraw_release(
        omaha.desk, "3.0.0", product=PRODUCT, board=BOARD, channels=(), keys=omaha.desk.offline()
    )
    assert sync(omaha, "1.0.0").reason in {"withdrawn", "stop-unavailable"}


def test_a_follower_waits_for_the_hour_of_the_channel(omaha: OmahaDesk, clock: Clock) -> None:
    opens = clock.now + timedelta(hours=1)
    promotion = replace(order("4.0.0"), not_before=opens, add_stops=("2.0.0", "3.0.0"))
    promote_channel(omaha.desk, promotion, keys=omaha.desk.offline())
    assert sync(omaha, "3.0.0").reason == "not-before"
    clock.pass_(hours=1)
    assert sync(omaha, "3.0.0").status == "ok"


def test_a_follower_gets_nothing_that_its_own_nodes_could_not_read(omaha: OmahaDesk) -> None:
    publish(omaha.desk, "5.0.0")
    promote(omaha.desk, "5.0.0")
    assert sync(omaha, "4.0.0").reason == "payload-unsuitable"


def test_a_follower_up_to_date_or_without_a_document_is_told_so(omaha: OmahaDesk) -> None:
    assert sync(omaha, "4.0.0").reason == "current"
    create_group(omaha.desk, "edge", channel="stable", changes={})
    assert sync(omaha, "4.0.0", group="edge").reason == "current"
