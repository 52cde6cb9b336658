"""The dashboard, its charts and words, and the numbers for Prometheus."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typing_extensions import override

import server.pages
from server.charts import progress_bar, version_bar
from server.claims import Claim
from server.desk import Desk
from server.freshness import Freshness
from server.metrics import VERSIONS_MAX, Metrics
from server.nodes import note_error
from server.omaha import OmahaDesk
from server.pages import Pages
from server.schema import NODES
from server.steering import pause_group
from server.wording import ago, event_words, size_words, span
from tests.sim.desk import START, Clock, SimNode, omaha_of, promote, publish
from updater.omaha import Event

MARKUP = "\"><script>alert('x')</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @override
    def handle_data(self, data: str) -> None:
        self.text += " " + " ".join(data.split())


def pages(desk: Desk) -> Pages:
    return Pages(desk, Freshness(desk))


@pytest.fixture
def omaha(desk: Desk) -> OmahaDesk:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    return omaha_of(desk)


def test_an_empty_desk_says_what_to_do_next(desk: Desk) -> None:
    page = Tags(pages(desk).dashboard())
    assert "No node has reported yet." in page.text
    assert "bascule-server release add" in page.text


def test_the_page_shows_groups_channels_nodes_and_events(omaha: OmahaDesk) -> None:
    node = SimNode("a" * 32, alias="rack1-node7")
    node.ask(omaha)
    node.tell(omaha, Event(type=13, result=1))
    SimNode("b" * 32, version="2.0.0").ask(omaha)
    text = Tags(pages(omaha.desk).dashboard()).text
    for words in (
        "follows stable",
        "1 of 2 on the current release",
        "1 under way",
        "rack1-node7",
        "download started 2.0.0",
        "channel promote",
    ):
        assert words in text


def test_a_stop_a_pause_and_an_error_are_told_with_their_reasons(omaha: OmahaDesk) -> None:
    node = SimNode("a" * 32, alias="rack1")
    node.ask(omaha)
    failed = Event(type=3, result=0, bascule_code="trial-web", bascule_sentence="check web failed")
    node.tell(omaha, failed)
    pause_group(omaha.desk, "default", reason="holiday")
    text = Tags(pages(omaha.desk).dashboard()).text
    assert "release 2.0.0 did not hold on node rack1 (trial-web)" in text
    assert "Paused: holiday." in text
    assert "check web failed" in text


def test_a_signature_that_ends_soon_is_announced_with_its_command(desk: Desk, clock: Clock) -> None:
    assert "Sign again soon" not in pages(desk).dashboard()
    clock.pass_(days=61)
    text = Tags(pages(desk).dashboard()).text
    assert "Sign again soon" in text
    assert "metadata refresh DIR --role stable" in text


def test_the_fragment_is_the_live_part_of_the_page(omaha: OmahaDesk) -> None:
    SimNode("a" * 32).ask(omaha)
    made = pages(omaha.desk)
    assert made.fragment().strip() in made.dashboard()
    assert "<html" not in made.fragment()


def test_nothing_of_the_page_comes_from_elsewhere(omaha: OmahaDesk) -> None:
    page = Tags(pages(omaha.desk).dashboard())
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"src", "href", "action", "data-source"} and value is not None
    ]
    assert links
    assert all(re.match(r"/(?!/)", link) for link in links)
    assert not [tag for tag, attributes in page.tags if "style" in attributes or tag == "style"]
    assert [a for tag, a in page.tags if tag == "script"] == [
        {"src": "/static/live.js", "defer": None}
    ]


def test_the_page_renews_itself_without_a_script(desk: Desk) -> None:
    page = pages(desk).dashboard()
    assert '<noscript><meta http-equiv="refresh" content="15"></noscript>' in page


def test_the_script_is_short() -> None:
    script = Path(server.pages.__file__).with_name("static") / "live.js"
    assert len(script.read_text().splitlines()) <= 40


def test_markup_that_got_into_the_database_is_shown_as_text(omaha: OmahaDesk, desk: Desk) -> None:
    node = SimNode("a" * 32)
    node.ask(omaha)
    with desk.store.writing() as connection:  # as if the checks on the way in had failed
        connection.execute(
            NODES.update().values(alias=MARKUP, oem=MARKUP, state=MARKUP, waits_for=MARKUP)
        )
        claim = Claim(
            product=node.app_id,
            machine_id=node.machine_id,
            group_name="default",
            board=node.board,
            running=None,  # type: ignore[arg-type]  # not looked at
        )
        note_error(connection, claim, code=MARKUP, sentence=MARKUP, now_s=0)
    page = Tags(pages(desk).dashboard())
    assert "alert" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


# --- charts and words


def test_a_bar_has_a_part_for_each_version_and_words_for_those_who_do_not_see_it() -> None:
    bar = ET.fromstring(str(version_bar({"1.0.0": 1, "2.0.0": 3}, label="nodes of group g")))
    assert bar.get("aria-label") == "nodes of group g: 1 on 1.0.0, 3 on 2.0.0"
    parts = [rect for rect in bar if rect.get("class") != "rail"]
    assert [(rect.get("x"), rect.get("width")) for rect in parts] == [
        ("0.00", "250.00"),
        ("250.00", "750.00"),
    ]
    assert [rect[0].text for rect in parts] == ["1.0.0: 1", "2.0.0: 3"]


def test_the_bar_of_an_empty_group_is_empty() -> None:
    bar = ET.fromstring(str(version_bar({}, label="nodes")))
    assert (len(bar), bar.get("aria-label")) == (1, "nodes: no nodes")


def test_a_bar_escapes_what_it_is_given() -> None:
    bar = ET.fromstring(str(version_bar({MARKUP: 1}, label=MARKUP)))
    assert bar[1][0].text == f"{MARKUP}: 1"


@pytest.mark.parametrize(("share", "width"), [(-1, "0.00"), (0.5, "500.00"), (7, "1000.00")])
def test_a_progress_bar_stays_within_its_rail(share: float, width: str) -> None:
    bar = ET.fromstring(str(progress_bar(share, label="half")))
    assert bar[1].get("width") == width


def test_words_for_time_and_size() -> None:
    assert ago(START - timedelta(minutes=3), START) == "3 minutes ago"
    assert ago(START, START) == "now"
    assert span(timedelta(hours=1)) == "1 hour"
    assert span(timedelta(seconds=-5)) == "0 s"
    assert [size_words(n) for n in (12, 2048, 5 * 2**20, 3 * 2**30)] == [
        "12 B", "2.0 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip
    assert (event_words(3, 2), event_words(99, 1)) == ("update complete", "event 99/1")


# --- numbers


def numbers(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample by name and label values."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_checks_grants_events_and_nodes_are_counted(omaha: OmahaDesk) -> None:
    metrics = Metrics(omaha.desk, Freshness(omaha.desk))
    counting = replace(omaha, tally=metrics)
    node = SimNode("a" * 32)
    for _ in range(2):
        node.ask(counting)
    SimNode("b" * 32, version="2.0.0", state="").ask(counting)
    counting.answer(SimNode("c" * 32, version="2.0.0", state="").request(ping=True))
    node.tell(counting, Event(type=13, result=1), Event(type=77, result=123456))
    metrics.request("/v1/update/", 200)
    metrics.request("/wp-admin/" + "x" * 50, 404)
    found = numbers(metrics)
    assert found["bascule_checks_total", "offered"] == 2
    assert found["bascule_checks_total", "current"] == 1
    assert found["bascule_grants_total", "default"] == 1
    assert found["bascule_events_total", "download started"] == 1
    assert found["bascule_events_total", "other"] == 1
    assert found["bascule_nodes", "default", "1.0.0"] == 1
    assert found["bascule_node_states", "default", "unknown"] == 1
    assert found["bascule_grants_active", "default"] == 1
    assert found["bascule_rollouts_stopped", "default"] == 0
    assert found["bascule_http_requests_total", "omaha", "200"] == 1
    assert found["bascule_http_requests_total", "other", "404"] == 1
    expires = omaha.desk.repository.read().timestamp.signed.expires
    assert found["bascule_metadata_expires_seconds", "timestamp"] == expires.timestamp()


def test_made_up_versions_do_not_make_series_without_end(omaha: OmahaDesk) -> None:
    for number in range(VERSIONS_MAX + 5):
        SimNode(f"{number:032x}", version=f"7.0.{number}").ask(omaha)
    found = numbers(Metrics(omaha.desk, Freshness(omaha.desk)))
    series = [key for key in found if key[0] == "bascule_nodes"]
    assert len(series) == VERSIONS_MAX + 1
    assert found["bascule_nodes", "default", "other"] == 5
