"""The Omaha endpoint's judgement: offers, holds, events, grants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server import queries
from server.activity import SERVER
from server.catalogue import Payload, payloads_of
from server.channels import promote_channel, set_base_urls, withdraw_release
from server.desk import Desk
from server.omaha import OmahaDesk
from server.rollout import place_of
from server.steering import create_group, pause_group, resume_group, set_group
from server.views import GrantView, GroupView, NodeView
from tests.sim import payloads
from tests.sim.desk import (
    BOARD,
    OURS,
    PRODUCT,
    STOCK,
    Clock,
    SimNode,
    delta_bytes,
    full_bytes,
    nodes,
    omaha_of,
    order,
    promote,
    publish,
)
from updater.omaha import (
    Action,
    AppRequest,
    AppResponse,
    Event,
    OsInfo,
    Package,
    Request,
    Response,
    UpdateCheck,
    UpdateCheckResult,
    encode_response,
)
from updater.omaha.codes import BLAMELESS_TRIALS

ONE = payloads.image(8, seed=1)
THREE = ONE[: -payloads.BLOCK] + payloads.image(1, seed=3)  # differs in its last block

STARTED = Event(type=13, result=1)
DOWNLOADED = Event(type=14, result=1)
INSTALLED = Event(type=3, result=1)
COMPLETE = Event(type=3, result=2, previous_version="1.0.0")
EMPTY_COMPLETE = Event(type=3, result=2, previous_version="")
FAILED_DOWNLOAD = Event(type=3, result=0, error_code=9, bascule_code="download-failed")
FAILED_TRIAL = Event(
    type=3,
    result=0,
    error_code=44,
    bascule_code="trial-unhealthy",
    bascule_sentence="check web failed with status 1",
)


@pytest.fixture
def omaha(desk: Desk) -> OmahaDesk:
    """An endpoint whose channel has 2.0.0 as current."""
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    return omaha_of(desk)


@pytest.fixture
def node() -> SimNode:
    return SimNode("3d1219c7c4c5404aaa1f6d2a48adfda4", alias="rack1-node7")


def group(omaha: OmahaDesk, name: str = "default") -> GroupView:
    with omaha.desk.store.reading() as connection:
        views = queries.groups(connection, omaha.desk.settings, now_s=omaha.desk.now_s())
    return next(view for view in views if view.name == name)


def seen(omaha: OmahaDesk, node: SimNode) -> NodeView:
    with omaha.desk.store.reading() as connection:
        return queries.node(connection, node.machine_id)


def grants(omaha: OmahaDesk, node: SimNode) -> list[GrantView]:
    with omaha.desk.store.reading() as connection:
        return queries.grants_of(connection, queries.node(connection, node.machine_id))


def phases(omaha: OmahaDesk, node: SimNode) -> list[str]:
    return [grant.phase for grant in grants(omaha, node)]


def verbs(omaha: OmahaDesk) -> list[tuple[str, str]]:
    with omaha.desk.store.reading() as connection:
        return [(line.actor, line.verb) for line in queries.activity(connection)]


def test_an_older_node_is_offered_the_current_release(omaha: OmahaDesk, node: SimNode) -> None:
    with omaha.desk.store.reading() as connection:
        (release,) = queries.releases(connection)
    check = node.ask(omaha)
    assert check.status == "ok"
    assert check.codebases == ("http://updates.example/payloads/",)
    (manifest,) = check.manifests
    (package,) = manifest.packages
    payload = release.payloads[0]
    assert manifest.version == "2.0.0"
    assert package == Package(
        name=f"{payload.sha256}.crau",
        size_bytes=payload.size,
        sha1=package.sha1,
        sha256=payload.sha256,
    )
    assert manifest.postinstall == Action(sha256=payload.sha256, disable_backoff=True)


def test_a_node_on_the_current_release_is_told_so(omaha: OmahaDesk, node: SimNode) -> None:
    check = replace(node, version="2.0.0").ask(omaha)
    assert (check.status, check.reason) == ("noupdate", "current")
    assert check.sentence == "2.0.0 is not older than 2.0.0"


@pytest.mark.parametrize("app_id", [PRODUCT, f"{{{PRODUCT.upper()}}}", f"{{{PRODUCT}}}"])
def test_a_product_is_found_by_any_spelling(omaha: OmahaDesk, node: SimNode, app_id: str) -> None:
    answer = omaha.answer(replace(node, app_id=app_id).request(check=True)).apps[0]
    assert (answer.app_id, answer.status) == (app_id, "ok")


def test_an_unknown_product_is_refused_and_not_remembered(omaha: OmahaDesk, node: SimNode) -> None:
    answer = omaha.answer(replace(node, app_id="{other}").request(check=True, ping=True)).apps[0]
    assert answer.status == "error-unknownApplication"
    assert answer.update_check is not None
    assert (answer.update_check.status, answer.update_check.reason) == (
        "error-internal", "product-unknown",
    )  # fmt: skip
    with omaha.desk.store.reading() as connection:
        assert queries.nodes(connection) == []


def test_several_products_of_one_request_are_answered_each(omaha: OmahaDesk, node: SimNode) -> None:
    known = node.request(check=True).apps[0]
    request = Request(apps=(replace(known, app_id="other"), known), version=OURS)
    assert [app.status for app in omaha.answer(request).apps] == ["error-unknownApplication", "ok"]


def test_a_request_without_apps_is_answered_without_apps(omaha: OmahaDesk) -> None:
    assert omaha.answer(Request(apps=())).apps == ()


def test_a_node_of_an_unknown_group_is_refused_and_still_seen(
    omaha: OmahaDesk, node: SimNode
) -> None:
    lost = replace(node, group="nowhere")
    answer = omaha.answer(lost.request(check=True)).apps[0]
    assert answer.status == "error-unknownApplicationOrGroup"
    assert answer.update_check is not None
    assert answer.update_check.sentence == "there is no group nowhere here"
    assert seen(omaha, lost).group == "nowhere"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"machine_id": "<x>"}, "error-instanceRegistrationFailed"),
        ({"version": "1.x"}, "error-invalidVersion"),
        ({"board": "a/b"}, "error-internal"),
    ],
)
def test_a_claim_that_cannot_be_worked_with_is_refused(
    omaha: OmahaDesk, node: SimNode, changes: dict[str, str], status: str
) -> None:
    answer = omaha.answer(replace(node, **changes).request(check=True)).apps[0]  # type: ignore[arg-type]
    assert answer.status == status
    assert answer.update_check is not None
    assert answer.update_check.status == "error-internal"


def test_another_protocol_is_said_to_be_unsupported(omaha: OmahaDesk, node: SimNode) -> None:
    request = replace(node.request(check=True), protocol="4.0")
    check = omaha.answer(request).apps[0].update_check
    assert check is not None
    assert check.status == "error-unsupportedProtocol"


def test_a_board_without_a_document_has_no_release(omaha: OmahaDesk, node: SimNode) -> None:
    assert replace(node, board="arm64-usr").ask(omaha).reason == "no-release"


def test_a_withdrawn_release_is_not_offered(omaha: OmahaDesk, node: SimNode) -> None:
    withdraw_release(
        omaha.desk,
        "2.0.0",
        product=PRODUCT,
        board=BOARD,
        channels=(),
        keys=omaha.desk.offline(),
    )
    assert node.ask(omaha).reason == "withdrawn"


def test_a_node_goes_back_by_a_signed_leave(omaha: OmahaDesk, node: SimNode, clock: Clock) -> None:
    from datetime import timedelta

    newer = replace(node, version="3.0.0")
    assert newer.ask(omaha).reason == "current"
    until = clock.now + timedelta(hours=1)
    promote_channel(
        omaha.desk,
        replace(order("2.0.0"), downgrade_from="3.0.0", until=until),
        keys=omaha.desk.offline(),
    )
    assert newer.ask(omaha).manifests[0].version == "2.0.0"
    assert phases(omaha, newer) == ["granted"]
    newer.ask(omaha)
    assert phases(omaha, newer) == ["granted"]
    replace(newer, version="2.0.0").ask(omaha)
    assert phases(omaha, newer) == ["complete"]


def test_base_urls_of_the_channel_come_first_and_end_in_a_slash(
    omaha: OmahaDesk, node: SimNode
) -> None:
    set_base_urls(omaha.desk, "stable", ["https://cdn.example/os", "https://b.example/"])
    assert node.ask(omaha).codebases == ("https://cdn.example/os/", "https://b.example/")


def test_nodes_are_told_how_often_to_ask_only_when_somebody_said_so(
    omaha: OmahaDesk, node: SimNode
) -> None:
    assert node.ask(omaha).poll_interval_s is None
    set_group(omaha.desk, "default", channel=None, changes={"poll_interval_s": 3600})
    assert node.ask(omaha).poll_interval_s == 3600
    assert replace(node, version="2.0.0").ask(omaha).poll_interval_s == 3600


def test_the_inventory_keeps_what_a_node_said(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    node.ask(omaha)
    clock.pass_(minutes=5)
    replace(node, state="installing", alias="").ask(omaha)
    view = seen(omaha, node)
    assert (view.alias, view.version, view.slot, view.state, view.group) == (
        "rack1-node7", "1.0.0", "a", "installing", "default",
    )  # fmt: skip
    assert (view.last_seen - view.first_seen).total_seconds() == 300
    with omaha.desk.store.reading() as connection:
        assert queries.node(connection, "rack1-node7") == view


def test_a_full_inventory_takes_no_new_node_but_serves_the_known(
    omaha: OmahaDesk, node: SimNode
) -> None:
    import msgspec

    small = msgspec.structs.replace(omaha.desk.settings, nodes_max=1)
    tight = omaha_of(replace(omaha.desk, settings=small))
    assert node.ask(tight).status == "ok"
    answer = tight.answer(SimNode("0" * 32).request(check=True)).apps[0]
    assert answer.update_check is not None
    assert answer.update_check.reason == "too-many-nodes"
    assert node.ask(tight).status == "ok"


# --- grants


def test_a_node_that_asks_again_keeps_its_one_grant(omaha: OmahaDesk, node: SimNode) -> None:
    for _ in range(3):
        assert node.ask(omaha).status == "ok"
    assert phases(omaha, node) == ["granted"]
    assert group(omaha).under_way == 1


def test_an_update_runs_through_its_phases(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    walk = [
        (STARTED, "downloading"),
        (DOWNLOADED, "downloaded"),
        (INSTALLED, "installed"),
    ]
    for event, phase in walk:
        replace(node, state="installing").tell(omaha, event)
        assert phases(omaha, node) == [phase]
    assert group(omaha).under_way == 1
    replace(node, state="trial", version="2.0.0").tell(omaha)
    assert group(omaha).under_way == 1
    replace(node, version="2.0.0").tell(omaha, COMPLETE)
    assert phases(omaha, node) == ["complete"]
    assert (group(omaha).under_way, group(omaha).on_current) == (0, 1)


def test_a_node_in_its_trial_is_not_yet_complete(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    assert replace(node, state="trial", version="2.0.0").ask(omaha).reason == "current"
    assert phases(omaha, node) == ["granted"]


def test_a_lost_completion_is_seen_by_what_the_node_runs(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    replace(node, version="2.0.0").ask(omaha)
    assert phases(omaha, node) == ["complete"]


def test_a_node_that_came_elsewhere_by_itself_frees_its_place(
    omaha: OmahaDesk, node: SimNode
) -> None:
    node.ask(omaha)
    replace(node, version="5.0.0").ask(omaha)
    assert phases(omaha, node) == ["superseded"]


def test_a_newer_release_supersedes_the_grant(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    publish(omaha.desk, "3.0.0")
    promote(omaha.desk, "3.0.0")
    assert node.ask(omaha).manifests[0].version == "3.0.0"
    assert [(g.version, g.phase) for g in grants(omaha, node)] == [
        ("3.0.0", "granted"),
        ("2.0.0", "superseded"),
    ]
    assert group(omaha).under_way == 1


def test_a_failed_download_frees_the_place_and_stops_nothing(
    omaha: OmahaDesk, node: SimNode
) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"max_concurrent": 1})
    other = SimNode("f" * 32)
    assert node.ask(omaha).status == "ok"
    assert other.ask(omaha).reason == "rollout-concurrency"
    node.tell(omaha, FAILED_DOWNLOAD)
    assert phases(omaha, node) == ["failed"]
    assert seen(omaha, node).error_code == "download-failed"
    assert group(omaha).stops == ()
    assert other.ask(omaha).status == "ok"


def test_a_failed_trial_stops_the_release_in_the_group(omaha: OmahaDesk, node: SimNode) -> None:
    other = SimNode("f" * 32)
    assert other.ask(omaha).status == "ok"
    node.ask(omaha)
    node.tell(omaha, FAILED_TRIAL)
    (stop,) = group(omaha).stops
    assert (stop.version, stop.code) == ("2.0.0", "trial-unhealthy")
    assert stop.sentence == "release 2.0.0 did not hold on node rack1-node7 (trial-unhealthy)"
    view = seen(omaha, node)
    assert (view.error_code, view.error_sentence) == (
        "trial-unhealthy", "check web failed with status 1",
    )  # fmt: skip
    held = other.ask(omaha)  # though it was under way
    assert (held.reason, held.sentence) == ("rollout-stopped", stop.sentence)
    assert SimNode("e" * 32).ask(omaha).reason == "rollout-stopped"
    assert (SERVER, "rollout stop") in verbs(omaha)


@pytest.mark.parametrize("code", sorted(BLAMELESS_TRIALS))
def test_a_trial_that_people_ended_holds_its_node_and_stops_nobody(
    omaha: OmahaDesk, node: SimNode, code: str
) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"max_concurrent": 1})
    node.ask(omaha)
    ended = replace(FAILED_TRIAL, bascule_code=code, bascule_sentence="was shut down")
    node.tell(omaha, ended)
    assert group(omaha).stops == ()
    assert (SERVER, "rollout stop") not in verbs(omaha)
    view = seen(omaha, node)
    assert (view.error_code, view.error_sentence) == (code, "was shut down")
    assert phases(omaha, node) == ["failed-trial"]
    assert node.ask(omaha).reason == "failed-here"  # it waits for a person, and takes no place
    other = SimNode("f" * 32)
    assert other.ask(omaha).status == "ok"
    other.tell(omaha, FAILED_TRIAL)
    assert [stop.code for stop in group(omaha).stops] == ["trial-unhealthy"]


def test_a_stop_holds_in_its_group_only(omaha: OmahaDesk, node: SimNode) -> None:
    create_group(omaha.desk, "canary", channel="stable", changes={})
    replace(node, group="canary").ask(omaha)
    replace(node, group="canary").tell(omaha, FAILED_TRIAL)
    assert group(omaha, "canary").stops
    assert SimNode("f" * 32).ask(omaha).status == "ok"


def test_the_next_release_is_not_stopped(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    node.tell(omaha, FAILED_TRIAL)
    publish(omaha.desk, "2.0.1")
    promote(omaha.desk, "2.0.1")
    assert node.ask(omaha).manifests[0].version == "2.0.1"


def test_resume_lets_others_go_on_but_not_the_node_it_failed_on(
    omaha: OmahaDesk, node: SimNode
) -> None:
    node.ask(omaha)
    node.tell(omaha, FAILED_TRIAL)
    assert resume_group(omaha.desk, "default") == ["2.0.0"]
    assert group(omaha).stops == ()
    assert SimNode("f" * 32).ask(omaha).status == "ok"
    assert node.ask(omaha).reason == "failed-here"


@pytest.mark.parametrize("error_code", [44, 44 + (1 << 28)])
def test_a_stock_engines_rollback_is_a_failed_trial(
    omaha: OmahaDesk, node: SimNode, error_code: int
) -> None:
    publish(omaha.desk, "2.0.0", container=1)
    stock = replace(node, agent=STOCK, state="")
    assert stock.ask(omaha).status == "ok"
    stock.tell(omaha, Event(type=3, result=0, error_code=error_code))
    (stop,) = group(omaha).stops
    assert stop.code == "trial-failed"
    assert seen(omaha, stock).error_sentence == (
        "the new version did not come up; the machine runs the old one (RollbackError, 44)"
    )


def test_a_failed_trial_names_its_release_when_the_grant_is_another(
    omaha: OmahaDesk, node: SimNode
) -> None:
    node.ask(omaha)
    publish(omaha.desk, "3.0.0")
    node.tell(omaha, replace(FAILED_TRIAL, next_version="3.0.0"))
    assert [stop.version for stop in group(omaha).stops] == ["3.0.0"]
    promote(omaha.desk, "3.0.0")
    assert node.ask(omaha).reason == "rollout-stopped"


def test_a_failed_trial_of_what_is_no_release_stops_nothing(
    omaha: OmahaDesk, node: SimNode
) -> None:
    node.tell(omaha, replace(FAILED_TRIAL, next_version="9.9.9"))
    node.tell(omaha, FAILED_TRIAL)  # never had a grant, names nothing
    assert group(omaha).stops == ()


def test_a_pause_holds_new_nodes_and_lets_the_others_finish(
    omaha: OmahaDesk, node: SimNode
) -> None:
    node.ask(omaha)
    pause_group(omaha.desk, "default", reason="holiday")
    held = SimNode("f" * 32).ask(omaha)
    assert (held.reason, held.sentence) == ("rollout-paused", "the group is paused: holiday")
    assert node.ask(omaha).status == "ok"
    resume_group(omaha.desk, "default")
    assert SimNode("f" * 32).ask(omaha).status == "ok"


def test_a_share_lets_exactly_the_nodes_below_it_in(omaha: OmahaDesk) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"share_percent": 30.0})
    fleet = nodes(60)
    granted = {node.machine_id for node in fleet if node.ask(omaha).status == "ok"}
    assert granted == {
        node.machine_id for node in fleet if place_of("2.0.0", node.machine_id) < 0.3
    }
    assert 0 < len(granted) < 60
    waiting = next(node for node in fleet if node.machine_id not in granted)
    assert waiting.ask(omaha).reason == "rollout-share"
    assert seen(omaha, waiting).waits_for == "rollout-share"


def test_a_limit_counts_grants_of_every_release_of_the_group(
    omaha: OmahaDesk, node: SimNode
) -> None:
    set_group(omaha.desk, "default", channel=None, changes={"max_concurrent": 1})
    node.ask(omaha)
    publish(omaha.desk, "3.0.0")
    promote(omaha.desk, "3.0.0")
    assert SimNode("f" * 32).ask(omaha).reason == "rollout-concurrency"


def test_a_silent_grant_frees_its_place_after_its_time(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    changes: dict[str, object] = {"max_concurrent": 1, "grant_timeout_s": 600}
    set_group(omaha.desk, "default", channel=None, changes=changes)
    other = SimNode("f" * 32)
    node.ask(omaha)
    clock.pass_(seconds=599)
    assert other.ask(omaha).reason == "rollout-concurrency"
    clock.pass_(seconds=1)
    assert other.ask(omaha).status == "ok"
    assert phases(omaha, node) == ["expired"]
    assert node.ask(omaha).reason == "rollout-concurrency"


def test_progress_keeps_a_grant_alive(omaha: OmahaDesk, node: SimNode, clock: Clock) -> None:
    changes: dict[str, object] = {"max_concurrent": 1, "grant_timeout_s": 600}
    set_group(omaha.desk, "default", channel=None, changes=changes)
    other = SimNode("f" * 32)
    node.ask(omaha)
    node.tell(omaha, STARTED)
    for _ in range(4):
        clock.pass_(seconds=599)
        replace(node, state="armed").ask(omaha)
        assert other.ask(omaha).reason == "rollout-concurrency"
    clock.pass_(seconds=600)
    assert other.ask(omaha).status == "ok"


def test_a_node_that_only_polls_does_not_hold_its_place_for_ever(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    changes: dict[str, object] = {"max_concurrent": 1, "grant_timeout_s": 600}
    set_group(omaha.desk, "default", channel=None, changes=changes)
    node.ask(omaha)
    clock.pass_(seconds=400)
    node.ask(omaha)
    clock.pass_(seconds=200)
    assert SimNode("f" * 32).ask(omaha).status == "ok"


def test_an_expired_grant_that_succeeds_after_all_is_complete(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    node.ask(omaha)
    clock.pass_(hours=2)
    SimNode("f" * 32).ask(omaha)
    assert phases(omaha, node) == ["expired"]
    replace(node, version="2.0.0").tell(omaha, COMPLETE)
    assert phases(omaha, node) == ["complete"]


def test_a_node_that_changes_its_group_gives_its_place_back(
    omaha: OmahaDesk, node: SimNode
) -> None:
    create_group(omaha.desk, "canary", channel="stable", changes={})
    node.ask(omaha)
    replace(node, group="canary").ask(omaha)
    assert (group(omaha).under_way, group(omaha, "canary").under_way) == (0, 1)
    assert (group(omaha).nodes, group(omaha, "canary").nodes) == (0, 1)


# --- stock engines


def test_a_stock_engine_is_served_the_payload_it_can_read(omaha: OmahaDesk, node: SimNode) -> None:
    stock = replace(node, agent=STOCK, state="")
    held = stock.ask(omaha)
    assert (held.status, held.reason) == ("noupdate", "payload-unsuitable")
    added = publish(omaha.desk, "2.0.0", container=1)
    (package,) = stock.ask(omaha).manifests[0].packages
    assert package.sha256 == added.sha256
    assert node.ask(omaha).manifests[0].packages[0].sha256 != added.sha256


def test_a_stock_engine_walks_through_a_whole_update(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    """The event sequence of omaha.md section 4, with what each step means here."""
    publish(omaha.desk, "2.0.0", container=1)
    stock = replace(node, agent=STOCK, state="")
    first_ever = replace(EMPTY_COMPLETE, previous_version="0.0.0.0")
    assert stock.ask(omaha, first_ever).status == "ok"
    assert phases(omaha, stock) == ["granted"]
    for event, phase, state in (
        (STARTED, "downloading", "installing"),
        (DOWNLOADED, "downloaded", "verifying"),
        (INSTALLED, "installed", "armed"),
    ):
        stock.tell(omaha, event)
        assert phases(omaha, stock) == [phase]
        assert seen(omaha, stock).state == state
    for _ in range(5):  # it waits for its reboot: pings only, and keeps its place
        clock.pass_(minutes=45)
        omaha.answer(stock.request(ping=True))
    SimNode("f" * 32).ask(omaha)
    assert phases(omaha, stock) == ["installed"]
    rebooted = replace(stock, version="2.0.0")
    assert rebooted.ask(omaha, COMPLETE).reason == "current"
    assert phases(omaha, rebooted) == ["complete"]
    assert seen(omaha, rebooted).state == "idle"
    assert rebooted.ask(omaha, EMPTY_COMPLETE).reason == "current"
    with omaha.desk.store.reading() as connection:
        kept = queries.events(connection, machine_id=stock.machine_id)
    assert [(e.type, e.result) for e in reversed(kept)] == [(13, 1), (14, 1), (3, 1), (3, 2)]


def test_a_stock_engine_that_lost_its_way_gets_the_same_release_again(
    omaha: OmahaDesk, node: SimNode
) -> None:
    publish(omaha.desk, "2.0.0", container=1)
    stock = replace(node, agent=STOCK, state="")
    stock.ask(omaha, EMPTY_COMPLETE)
    stock.tell(omaha, STARTED)
    assert stock.ask(omaha, EMPTY_COMPLETE).status == "ok"
    assert len(grants(omaha, stock)) == 1


def test_a_stock_engine_that_asks_again_is_idle_whatever_it_said_before(
    omaha: OmahaDesk, node: SimNode
) -> None:
    """It died in a download: it would not ask in any other state."""
    publish(omaha.desk, "2.0.0", container=1)
    stock = replace(node, agent=STOCK, state="")
    stock.ask(omaha)
    stock.tell(omaha, STARTED)
    assert seen(omaha, stock).state == "installing"
    stock.ask(omaha, EMPTY_COMPLETE)
    assert seen(omaha, stock).state == "idle"


def test_a_stock_engine_that_died_in_a_download_does_not_hold_its_place_for_ever(
    omaha: OmahaDesk, clock: Clock
) -> None:
    publish(omaha.desk, "2.0.0", container=1)
    set_group(omaha.desk, "default", channel=None, changes={"max_concurrent": 1})
    stock, other = (SimNode(name * 32, agent=STOCK, state="") for name in "ab")
    stock.ask(omaha)
    stock.tell(omaha, STARTED)
    assert other.ask(omaha).reason == "rollout-concurrency"
    clock.pass_(seconds=omaha.desk.settings.grant_timeout_secs)
    assert other.ask(omaha).status == "ok"
    assert phases(omaha, stock) == ["expired"]
    other.tell(omaha, FAILED_DOWNLOAD)
    assert stock.ask(omaha, EMPTY_COMPLETE).status == "ok"  # it came back, and is not stuck


@pytest.mark.parametrize("error_code", [35, 36, 40, 40 + (1 << 28)])
def test_an_update_that_a_node_puts_off_frees_its_place(
    omaha: OmahaDesk, node: SimNode, error_code: int
) -> None:
    node.ask(omaha)
    node.tell(omaha, Event(type=3, result=9, error_code=error_code))
    assert phases(omaha, node) == ["deferred"]
    assert seen(omaha, node).error_code == f"engine-{error_code & 0xFFFF}"
    assert (group(omaha).under_way, group(omaha).stops) == (0, ())
    replace(node, version="2.0.0").ask(omaha)
    assert phases(omaha, node) == ["complete"]


def test_a_general_client_that_names_no_board_gets_what_its_architecture_needs(
    omaha: OmahaDesk, node: SimNode
) -> None:
    asked = node.request(check=True)
    app = replace(asked.apps[0], board="")
    for arch, reason in (("x64", ""), ("arm", "no-release")):
        request = replace(asked, apps=(app,), os=OsInfo(arch=arch))
        check = omaha.answer(request).apps[0].update_check
        assert check is not None
        assert check.reason == reason


@pytest.mark.parametrize("track", ["{9a2deb70-37be-4026-853f-bfdd6b347bbe}", " stable "])
def test_a_group_is_found_by_the_old_forms_of_its_name(
    omaha: OmahaDesk, node: SimNode, track: str
) -> None:
    create_group(omaha.desk, "stable", channel="stable", changes={})
    assert replace(node, group=track).ask(omaha).status == "ok"
    assert seen(omaha, node).group == "stable"


# --- deltas


@pytest.fixture
def with_delta(omaha: OmahaDesk) -> Payload:
    """3.0.0 is current and has a delta from 1.0.0."""
    publish(omaha.desk, "1.0.0", data=full_bytes(ONE))
    added = publish(
        omaha.desk, "3.0.0", data=full_bytes(THREE), deltas={"d": delta_bytes(ONE, THREE)}
    )
    publish(omaha.desk, "3.0.0", container=1)
    promote(omaha.desk, "3.0.0")
    with omaha.desk.store.reading() as connection:
        found = payloads_of(connection, PRODUCT, BOARD, "3.0.0")
    (delta,) = (one for one in found if one.sha256 == added.deltas[0].sha256)
    return delta


def packages(answer: UpdateCheckResult) -> list[tuple[str, bool]]:
    return [(one.sha256, one.required) for one in answer.manifests[0].packages]


def test_a_delta_is_named_behind_the_full_payload_to_nodes_that_may_take_it(
    omaha: OmahaDesk, node: SimNode, with_delta: Payload
) -> None:
    answer = replace(node, version="1.0.0", delta_okay=True).ask(omaha)
    full, delta = packages(answer)
    assert delta == (with_delta.sha256, False)
    assert full[1]
    assert full[0] != delta[0]
    action = answer.manifests[0].postinstall
    assert action is not None
    assert (action.sha256, action.is_delta) == (full[0], False)


@pytest.mark.parametrize(
    "changes",
    [
        {"delta_okay": False},
        {"version": "1.5.0"},
        {"agent": STOCK, "state": ""},
        {"agent": "CoreOSUpdateEngine-0.1.0.0", "state": ""},
    ],
)
def test_nobody_else_is_told_of_it(
    omaha: OmahaDesk, node: SimNode, with_delta: Payload, changes: dict[str, object]
) -> None:
    asking = replace(node, version="1.0.0", delta_okay=True)
    answer = replace(asking, **changes).ask(omaha)  # type: ignore[arg-type]  # by name
    assert answer.status == "ok"
    ((sha256, _),) = packages(answer)
    assert sha256 != with_delta.sha256
    said = encode_response(Response(apps=(AppResponse(app_id="a", update_check=answer),)))
    assert with_delta.sha256.encode() not in said


def test_a_delta_that_the_channel_does_not_name_yet_is_not_offered(
    omaha: OmahaDesk, node: SimNode
) -> None:
    publish(omaha.desk, "1.0.0", data=full_bytes(ONE))
    publish(omaha.desk, "3.0.0", data=full_bytes(THREE))
    promote(omaha.desk, "3.0.0")
    added = publish(
        omaha.desk, "3.0.0", data=full_bytes(THREE), deltas={"d": delta_bytes(ONE, THREE)}
    )
    assert any("promote it again" in warning for warning in added.warnings)
    asking = replace(node, version="1.0.0", delta_okay=True)
    assert len(packages(asking.ask(omaha))) == 1
    promote(omaha.desk, "3.0.0")
    assert len(packages(asking.ask(omaha))) == 2


# --- events


def test_events_of_any_kind_are_kept_and_change_nothing(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    node.tell(omaha, Event(type=2**63 - 1, result=-(2**63) + 1), Event(type=0, result=7))
    assert phases(omaha, node) == ["granted"]
    with omaha.desk.store.reading() as connection:
        assert len(queries.events(connection)) == 2


def test_success_clears_the_last_error(omaha: OmahaDesk, node: SimNode) -> None:
    node.ask(omaha)
    node.tell(omaha, FAILED_DOWNLOAD)
    assert seen(omaha, node).error_sentence == (
        "the payload could not be downloaded (DownloadTransferError, 9)"
    )
    node.ask(omaha)
    replace(node, version="2.0.0").tell(omaha, COMPLETE)
    assert seen(omaha, node).error_code == ""


def test_markup_in_an_event_is_stored_as_text_or_not_at_all(
    omaha: OmahaDesk, node: SimNode
) -> None:
    event = Event(
        type=3, result=0, bascule_code="<b>", bascule_sentence="<script>\x1b[31m</script>"
    )
    node.tell(omaha, event)
    view = seen(omaha, node)
    assert (view.error_code, view.error_sentence) == ("unknown", "<script>[31m</script>")


def test_old_events_are_dropped(omaha: OmahaDesk, node: SimNode) -> None:
    from server.nodes import forget_old_events

    for _ in range(12):
        node.tell(omaha, STARTED)
    with omaha.desk.store.writing() as connection:
        assert forget_old_events(connection, keep=10) == 2
    with omaha.desk.store.reading() as connection:
        assert len(queries.events(connection)) == 10


def test_nodes_silent_for_long_are_forgotten(omaha: OmahaDesk, node: SimNode, clock: Clock) -> None:
    from server.upkeep import sweep

    node.ask(omaha)
    clock.pass_(days=omaha.desk.settings.nodes_kept_days + 1)
    other = SimNode("f" * 32)
    other.ask(omaha)
    sweep(omaha.desk)
    with omaha.desk.store.reading() as connection:
        assert [view.machine_id for view in queries.nodes(connection)] == [other.machine_id]


def test_old_grants_are_forgotten_but_for_failed_trials(
    omaha: OmahaDesk, node: SimNode, clock: Clock
) -> None:
    from server.upkeep import sweep

    for _ in range(3):
        node.ask(omaha)
        node.tell(omaha, FAILED_DOWNLOAD)
    node.ask(omaha)
    node.tell(omaha, FAILED_TRIAL)
    clock.pass_(days=31)
    node.tell(omaha)
    sweep(omaha.desk)
    assert phases(omaha, node) == ["failed-trial"]


def test_an_update_check_alone_registers_a_node(omaha: OmahaDesk) -> None:
    app = AppRequest(app_id=PRODUCT, version="1.0.0", machine_id="abc", update_check=UpdateCheck())
    answer = omaha.answer(Request(apps=(app,), version=OURS)).apps[0]
    assert (answer.ping_ok, answer.events_ok) == (False, 0)
    with omaha.desk.store.reading() as connection:
        assert queries.node(connection, "abc").group == "default"
