"""Stock clients against our server: their requests to the byte, our answers as they read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from server.channels import promote_channel
from server.desk import Desk
from server.steering import create_group, pause_group, set_group
from server.views import NodeView
from tests.sim.desk import BOARD, Clock, found_desk, order, promote, publish, serving
from tests.sim.go_omaha import CHECK_BODY, GoOmahaClient, GoOmahaError, sync, sync_request
from tests.sim.stock_engine import (
    CHECK,
    PING,
    EngineFailureError,
    StockEngine,
    read_answer,
)

FIXTURES = Path(__file__).parent.parent / "data" / "omaha"
STARTED, FINISHED, COMPLETE = (
    f'<event eventtype="{kind}" eventresult="1"></event>' for kind in (13, 14, 3)
)


def fixture(name: str) -> bytes:
    return (FIXTURES / f"{name}.xml").read_bytes()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk whose group `stable` may have 2.0.0, in both formats."""
    made = found_desk(tmp_path / "desk", clock=Clock()).desk
    create_group(made, "stable", channel="stable", changes={})
    publish(made, "2.0.0")
    publish(made, "2.0.0", container=1)
    promote(made, "2.0.0")
    yield made
    made.store.close()


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    with serving(desk) as address:
        yield f"{address}/v1/update/"


def engine(url: str, folder: Path, **changes: object) -> StockEngine:
    facts: dict[str, object] = {
        "version": "3815.2.0",
        "aleph": "3510.2.0",
        "alias": 'rack1 "node7"',
    }
    return StockEngine(url, folder, **facts | changes)  # type: ignore[arg-type]  # as named


# --- requests


def test_the_simulated_engine_posts_what_the_real_one_posts(tmp_path: Path) -> None:
    """The fixtures were written from what the real engine sends, the simulator by itself."""
    node = engine("", tmp_path)
    assert node.request(node.check_body()) == fixture("update_engine-first-check")
    by_person = node.request(node.check_body(), by_person=True)
    assert by_person == fixture("update_engine-check-by-a-person")
    assert node.request([STARTED]) == fixture("update_engine-download-started")
    assert node.request([FINISHED]) == fixture("update_engine-download-finished")
    assert node.request([COMPLETE]) == fixture("update_engine-complete")
    assert node.request([PING]) == fixture("update_engine-ping")


def test_it_tells_of_a_reboot_and_of_a_fall_back_as_the_real_one_does(tmp_path: Path) -> None:
    boot = "5c1a3f0e-7f55-4be8-a5a4-6e1f2b0f9d11"
    fallen = engine("", tmp_path, previous_version="3815.2.0", boot_id=boot)
    assert fallen.request(fallen.check_body()) == fixture("update_engine-rollback")
    rebooted = replace(fallen, version="3975.2.1", previous_version="3815.2.0")
    assert rebooted.request(rebooted.check_body()) == fixture("update_engine-rebooted")
    assert rebooted.check_body() == [
        PING, CHECK, '<event eventtype="3" eventresult="2" previousversion=""></event>',
    ]  # fmt: skip


def test_the_general_client_and_the_syncer_post_what_the_real_ones_post() -> None:
    client = GoOmahaClient("", "3815.2.0")
    assert client.request(CHECK_BODY) == fixture("go-omaha-check")
    assert sync_request("3815.2.0") == fixture("nebraska-sync")


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("update_engine-*.xml")), ids=lambda f: f.stem)
def test_every_request_of_the_engine_is_taken(url: str, file: Path) -> None:
    answer = requests.post(url, data=file.read_bytes(), timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        200, "text/xml; charset=utf-8",
    )  # fmt: skip
    assert b'status="ok"' in answer.content
    events = file.read_text().count("<event ")
    assert answer.text.count('<event status="ok" />') == events


# --- answers, as the engine reads them


def test_the_engine_reads_our_offer_and_finds_the_payload_it_can_read(
    url: str, tmp_path: Path
) -> None:
    node = engine(url, tmp_path, version="1.0.0")
    answer = read_answer(requests.post(url, node.request(node.check_body()), timeout=30).content)
    offer = answer.offer
    assert offer is not None
    (payload_url,) = offer.urls
    data = requests.get(payload_url, timeout=30).content
    assert data[4:12] == (1).to_bytes(8)
    assert (offer.version, offer.size) == ("2.0.0", len(data))
    assert (offer.is_delta, offer.disable_backoff, offer.max_failures_per_url) == (False, True, 10)
    assert answer.poll_interval_s == 0


def test_every_base_url_is_read_in_order_and_ends_in_one_slash(
    url: str, tmp_path: Path, desk: Desk
) -> None:
    from server.channels import set_base_urls

    set_base_urls(desk, "stable", ["https://cdn.example/os", "https://b.example/"])
    node = engine(url, tmp_path, version="1.0.0")
    offer = read_answer(requests.post(url, node.request([CHECK]), timeout=30).content).offer
    assert offer is not None
    name = offer.urls[0].rpartition("/")[2]
    assert offer.urls == (f"https://cdn.example/os/{name}", f"https://b.example/{name}")
    # The engine adds a missing slash, other clients do not.
    assert GoOmahaClient(url, "1.0.0").check().package.url == f"https://cdn.example/os/{name}"


def test_the_engine_reads_noupdate_and_the_poll_interval_with_it(
    url: str, tmp_path: Path, desk: Desk
) -> None:
    set_group(desk, "stable", channel=None, changes={"poll_interval_s": 7200})
    node = engine(url, tmp_path)
    assert node.tick() == "no update"
    assert node.poll_interval_s == 7200
    node.version = "1.0.0"
    pause_group(desk, "stable", reason="holiday")
    assert node.tick() == "no update"
    assert node.said == [(3, 2, None)] * 2  # nothing to complain about


@pytest.mark.parametrize(
    "changes",
    [
        {"track": "nowhere"},
        {"version": ""},
        {"version": "1.x"},
        {"machine_id": "<>"},
    ],
)
def test_what_cannot_be_served_is_34_to_the_engine_and_it_says_so(
    url: str, tmp_path: Path, changes: dict[str, object]
) -> None:
    node = engine(url, tmp_path, **changes)
    assert node.tick() == "failed 34"
    assert node.said[-1] == (3, 0, 268435490)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nebraska-malformed-request", 31),
        ("nebraska-throttled", 34),
        ("go-omaha-unknown-app", 34),
        ("nebraska-event", 34),
    ],
)
def test_the_simulated_engine_fails_where_the_real_one_does(name: str, code: int) -> None:
    with pytest.raises(EngineFailureError) as caught:
        read_answer(fixture(name))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["nebraska-update", "go-omaha-update", "coreupdate-update"])
def test_the_simulated_engine_reads_what_the_real_one_reads(name: str) -> None:
    offer = read_answer(fixture(name)).offer
    assert offer is not None
    assert (offer.sha256, offer.is_delta) == (
        "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=", False,
    )  # fmt: skip


# --- floors


def test_a_machine_goes_over_every_stop_one_at_a_time(url: str, tmp_path: Path, desk: Desk) -> None:
    for version in ("3.0.0", "4.0.0"):
        publish(desk, version)
        publish(desk, version, container=1)
    stops = replace(order("4.0.0"), add_stops=("2.0.0", "3.0.0"))
    promote_channel(desk, stops, keys=desk.offline())
    node = engine(url, tmp_path, version="1.0.0")
    for expected in ("2.0.0", "3.0.0", "4.0.0"):
        body = node.request([PING, CHECK])
        offer = read_answer(requests.post(url, body, timeout=30).content).offer
        assert offer is not None
        assert offer.version == expected
        assert GoOmahaClient(url, node.version).check().version == expected
        node.version = expected
    assert node.tick() == "no update"


# --- go-omaha's clients


def test_the_general_client_updates_by_what_we_send(url: str, desk: Desk) -> None:
    client = GoOmahaClient(url, "1.0.0")
    update = client.check()
    assert (update.version, update.action["event"]) == ("2.0.0", "postinstall")
    data = requests.get(update.package.url, timeout=30).content
    update.package.verify(data)  # size, SHA-1 and SHA-256
    with pytest.raises(GoOmahaError, match="sha1"):
        update.package.verify(data[:-1] + b"x")
    for kind in (13, 14, 3):
        client.event(kind, 1)
    client.ping()
    client.version = "2.0.0"
    with pytest.raises(GoOmahaError, match="noupdate"):
        client.check()
    assert set(client.statuses) == {200}
    view = seen(desk, client.user_id)
    assert (view.version, view.board, view.state) == ("2.0.0", BOARD, "idle")


def test_the_general_client_is_told_which_app_or_group_is_unknown(url: str) -> None:
    with pytest.raises(GoOmahaError, match="error-unknownApplication"):
        GoOmahaClient(url, "1.0.0", app_id="{other}").check()
    with pytest.raises(GoOmahaError, match="error-unknownApplicationOrGroup"):
        GoOmahaClient(url, "1.0.0", track="nowhere").check()


def test_a_nebraska_that_follows_us_takes_every_version_over(url: str, desk: Desk) -> None:
    publish(desk, "3.0.0")
    publish(desk, "3.0.0", container=1)
    stop = replace(order("3.0.0"), add_stops=("2.0.0",))
    promote_channel(desk, stop, keys=desk.offline())
    updates = sync(url, "1.0.0")
    assert [(one.version, one.is_floor, one.is_target) for one in updates] == [
        ("2.0.0", True, False),
        ("3.0.0", False, True),
    ]
    for update in updates:
        update.package.verify(requests.get(update.package.url, timeout=30).content)
    with pytest.raises(GoOmahaError, match="noupdate"):
        sync(url, "3.0.0")


def seen(desk: Desk, name: str) -> NodeView:
    from server import queries

    with desk.store.reading() as connection:
        return queries.node(connection, name)
