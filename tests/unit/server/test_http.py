"""The web application through a real server on a loopback port."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from server.desk import Desk
from server.shield import SECURITY_HEADERS
from server.store import Store
from tests.sim.desk import BOARD, PRODUCT, Clock, SimNode, promote, publish, serving
from updater.omaha import Event, Response, decode_response, encode_request
from updater.omaha.codec import REQUEST_MAX_BYTES


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    with serving(desk) as address:
        yield address


@pytest.fixture
def node() -> SimNode:
    return SimNode("a" * 32, alias="rack1-node7")


def post(url: str, body: bytes, path: str = "/v1/update/") -> requests.Response:
    headers = {"Content-Type": "text/xml"}
    return requests.post(f"{url}{path}", data=body, headers=headers, timeout=30)


def ask(url: str, node: SimNode, *events: Event) -> Response:
    request = node.request(events=events, check=True, ping=True)
    answer = post(url, encode_request(request))
    assert answer.status_code == 200
    return decode_response(answer.content)


def get(url: str, path: str, **headers: str) -> requests.Response:
    return requests.get(f"{url}{path}", headers=headers, timeout=30)


@pytest.mark.parametrize("path", ["/v1/update/", "/v1/update"])
def test_the_endpoint_answers_with_and_without_its_slash(
    url: str, node: SimNode, path: str
) -> None:
    answer = post(url, encode_request(node.request(check=True)), path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        200, "text/xml; charset=utf-8",
    )  # fmt: skip
    assert decode_response(answer.content).apps[0].status == "ok"


def test_what_is_offered_can_be_fetched_from_where_it_says(url: str, node: SimNode) -> None:
    check = ask(url, node).apps[0].update_check
    assert check is not None
    package = check.manifests[0].packages[0]
    payload = requests.get(check.codebases[0] + package.name, timeout=30)
    assert len(payload.content) == package.size_bytes
    assert hashlib.sha256(payload.content).hexdigest() == package.sha256


def test_an_error_of_an_app_is_still_http_200(url: str, node: SimNode) -> None:
    node.app_id = "unknown"
    assert ask(url, node).apps[0].status == "error-unknownApplication"


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"<html></html>", b"<!DOCTYPE request><request/>", b"\xff\xfe<\x00"],
)
def test_what_is_no_request_gets_400_and_one_line(url: str, body: bytes) -> None:
    answer = post(url, body)
    assert answer.status_code == 400
    assert answer.text.startswith("omaha-format: ")
    assert answer.text.count("\n") == 1


def test_a_body_over_the_limit_is_cut_off(url: str) -> None:
    assert post(url, b"x" * (REQUEST_MAX_BYTES + 1)).status_code == 413


def test_a_body_that_never_says_its_size_is_cut_off_too(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 4096

    answer = requests.post(f"{url}/v1/update/", data=endless(), timeout=30)
    assert answer.status_code == 413


def test_a_body_that_comes_too_slowly_is_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app.BODY_PATIENCE_S", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"POST /v1/update/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n<re")
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/v1/update/", "/v1/update"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_the_endpoint_takes_posts_only_and_says_so(url: str, method: str, path: str) -> None:
    answer = requests.request(method, f"{url}{path}", timeout=30)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    if method != "HEAD":
        assert answer.text == "omaha-method: an Omaha client posts its request here\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/xml"},
        {"Content-Type": "text/xml; charset=utf-8"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
    ],
)
def test_a_request_is_read_whatever_its_content_type_says(
    url: str, node: SimNode, headers: dict[str, str]
) -> None:
    body = encode_request(node.request(check=True))
    answer = requests.post(f"{url}/v1/update/", data=body, headers=headers, timeout=30)
    assert decode_response(answer.content).apps[0].status == "ok"


LOOSE = (
    '<request future="1" ismachine="1" protocol="3.0" version="go-omaha"><app delta_okay="no"'
    ' track="default" version="1.0.0" machineid="{id}" unknown="x" appid="{app}"><event'
    ' eventresult="1" eventtype="13"/><data/><updatecheck targetversionprefix=""/><ping r="-1"'
    ' a="-1" active="1"/></app><hw/><os arch="x64" platform="linux"/></request>'
)


def test_order_unknown_things_and_a_missing_declaration_do_not_matter(url: str) -> None:
    body = LOOSE.replace("{id}", "b" * 32).replace("{app}", PRODUCT)
    (app,) = decode_response(post(url, body.encode()).content).apps
    assert (app.status, app.ping_ok, app.events_ok) == ("ok", True, 1)
    assert app.update_check is not None
    assert app.update_check.reason == "payload-unsuitable"  # of format 2, and it was understood


def test_a_byte_order_mark_before_the_declaration_does_not_matter(url: str, node: SimNode) -> None:
    body = b"\xef\xbb\xbf" + encode_request(node.request(check=True))
    assert decode_response(post(url, body).content).apps[0].status == "ok"


def test_a_request_without_apps_is_answered_without_apps(url: str) -> None:
    answer = post(url, b'<request protocol="3.0"/>')
    assert (answer.status_code, decode_response(answer.content).apps) == (200, ())


def test_every_answer_has_the_headers_that_keep_a_browser_honest(url: str) -> None:
    for path in ("/", "/nowhere", "/healthz", "/api/groups", "/api/nowhere", "/payloads/x"):
        answer = get(url, path)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "server" not in answer.headers


def test_metadata_is_served_as_it_was_signed_and_kept_as_long_as_it_may(
    url: str, desk: Desk
) -> None:
    for file in desk.repository.metadata_folder.glob("*.json"):
        answer = get(url, f"/repository/metadata/{file.name}")
        assert answer.content == file.read_bytes()
        expected = (
            "no-cache" if file.name == "timestamp.json" else "public, max-age=31536000, immutable"
        )
        assert answer.headers["Cache-Control"] == expected


def test_a_root_that_does_not_exist_yet_is_404_and_never_kept(url: str) -> None:
    answer = get(url, "/repository/metadata/2.root.json")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (404, "no-store")


def test_an_unchanged_timestamp_is_not_sent_again(url: str) -> None:
    first = get(url, "/repository/metadata/timestamp.json")
    again = get(
        url, "/repository/metadata/timestamp.json", **{"If-None-Match": first.headers["ETag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


def payload_of(desk: Desk) -> Path:
    (file,) = desk.payloads.glob("*.crau")
    return file


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=4000-", 206, 4000, None),
        ("bytes=-10", 206, -10, None),
        ("bytes=0-99999999", 206, 0, None),
    ],
)
def test_a_payload_is_served_in_ranges(
    url: str, desk: Desk, asked: str, status: int, start: int, end: int | None
) -> None:
    file = payload_of(desk)
    data = file.read_bytes()
    answer = get(url, f"/payloads/{file.name}", Range=asked)
    assert (answer.status_code, answer.content) == (status, data[start:end])
    assert answer.headers["Content-Range"].endswith(f"/{len(data)}")


def test_a_range_past_the_end_is_416(url: str, desk: Desk) -> None:
    file = payload_of(desk)
    answer = get(url, f"/payloads/{file.name}", Range=f"bytes={file.stat().st_size}-")
    assert answer.status_code == 416


def test_a_payload_is_named_by_its_hash_for_caches(url: str, desk: Desk) -> None:
    file = payload_of(desk)
    answer = get(url, f"/payloads/{file.name}")
    assert answer.headers["ETag"] == f'"{file.stem}"'
    assert answer.headers["Cache-Control"].endswith("immutable")
    assert answer.headers["Accept-Ranges"] == "bytes"
    same = get(
        url, f"/payloads/{file.name}", **{"If-Range": f'"{file.stem}"', "Range": "bytes=0-9"}
    )
    assert same.status_code == 206
    other = get(url, f"/payloads/{file.name}", **{"If-Range": '"x"', "Range": "bytes=0-9"})
    assert other.status_code == 200


def test_a_payload_is_also_found_by_its_tuf_path(url: str, desk: Desk) -> None:
    file = payload_of(desk)
    path = f"/repository/targets/os/{PRODUCT}/{BOARD}/2.0.0/{file.stem}.full.crau"
    assert get(url, path).content == file.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/payloads/../server.toml",
        "/payloads/%2e%2e/server.toml",
        "/payloads/..%2fbascule.db",
        "/payloads/.draft-x",
        "/payloads/",
        "/repository/metadata/..%2f..%2fkeys%2fonline%2ftimestamp-1.pem",
        "/repository/metadata/../../keys/online/timestamp-1.pem",
        "/repository/targets/%2e%2e/%2e%2e/server.toml",
        "/repository/targets//etc/passwd",
        "/static/..%2fcli.py",
        "/static/%00",
    ],
)
def test_no_path_leads_out_of_what_is_public(url: str, path: str) -> None:
    prepared = requests.Request("GET", url).prepare()
    prepared.url = url + path
    with requests.Session() as session:
        answer = session.send(prepared, timeout=30)
    assert answer.status_code in {404, 405}
    assert b"PRIVATE KEY" not in answer.content


def test_files_are_read_only(url: str, desk: Desk) -> None:
    file = payload_of(desk)
    for method in ("PUT", "POST", "DELETE"):
        answer = requests.request(method, f"{url}/payloads/{file.name}", timeout=30)
        assert answer.status_code == 405


def test_the_dashboard_and_its_parts_are_served(url: str, node: SimNode) -> None:
    ask(url, node)
    page = get(url, "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-store"
    assert "rack1-node7" in page.text
    assert "rack1-node7" in get(url, "/fragment").text
    kinds = {"style.css": "text/css", "live.js": "javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        assert kind in get(url, f"/static/{name}").headers["Content-Type"]


def test_health_is_ok_until_a_signature_ends(url: str, clock: Clock) -> None:
    answer = get(url, "/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    clock.pass_(days=3)
    answer = get(url, "/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "metadata-expired")


def test_health_names_damaged_metadata(url: str, desk: Desk) -> None:
    (desk.repository.metadata_folder / "timestamp.json").unlink()
    answer = get(url, "/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "repository-damaged")


def test_a_busy_database_is_503_with_a_time_to_come_back(
    desk: Desk, node: SimNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    monkeypatch.setattr("server.store.BUSY_TIMEOUT_S", 0)
    impatient = Store(desk.folder / "bascule.db")
    from dataclasses import replace

    with serving(replace(desk, store=impatient)) as url, desk.store.writing():
        answer = post(url, encode_request(node.request(check=True)))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.text.startswith("database-busy: ")
        assert get(url, "/payloads/" + payload_of(desk).name).status_code == 200


def test_numbers_are_served(url: str, node: SimNode) -> None:
    ask(url, node)
    answer = get(url, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'bascule_checks_total{outcome="offered"} 1.0' in answer.text


# --- the API


def test_the_api_tells_what_the_commands_tell(url: str, node: SimNode) -> None:
    ask(url, node, Event(type=13, result=1))
    (group,) = get(url, "/api/groups").json()["items"]
    assert (group["name"], group["versions"], group["stops"]) == ("default", {"1.0.0": 1}, [])
    (channel,) = get(url, "/api/channels").json()["items"]
    assert channel["documents"][0]["current"] == "2.0.0"
    (release,) = get(url, "/api/releases").json()["items"]
    assert release["current_on"] == ["stable"]
    (listed,) = get(url, "/api/nodes?group=default").json()["items"]
    assert listed["alias"] == "rack1-node7"
    details = get(url, "/api/nodes/rack1-node7").json()
    assert (details["node"], details["grants"][0]["version"]) == (listed, "2.0.0")
    (event,) = get(url, "/api/events").json()["items"]
    assert (event["type"], event["alias"]) == (13, "rack1-node7")
    assert {line["verb"] for line in get(url, "/api/activity").json()["items"]} >= {
        "desk init",
        "release add",
        "channel promote",
        "rollout begin",
    }
    names = {role["name"] for role in get(url, "/api/roles").json()["items"]}
    assert names == {"root", "targets", "snapshot", "timestamp", "releases", "stable"}


def test_lists_come_in_pages_with_the_way_to_the_next(url: str) -> None:
    for number in range(5):
        ask(url, SimNode(f"{number:032x}"), Event(type=13, result=1))
    seen: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = get(url, f"/api/nodes?limit=2&offset={offset}").json()
        seen += [item["machine_id"] for item in page["items"]]
        offset = page["next"]
    assert seen == [f"{number:032x}" for number in range(5)]
    first = get(url, "/api/events?limit=3").json()
    second = get(url, f"/api/events?limit=3&before={first['next']}").json()
    ids = [event["id"] for event in first["items"] + second["items"]]
    assert ids == sorted(ids, reverse=True)
    assert (len(ids), second["next"]) == (5, None)


@pytest.mark.parametrize(
    "path",
    [
        "/api/nodes?limit=0",
        "/api/nodes?limit=1001",
        "/api/nodes?offset=-1",
        "/api/nodes?group=" + "x" * 65,
        "/api/events?before=0",
        "/api/events?before=9223372036854775808",
        "/api/events?limit=many",
    ],
)
def test_a_page_that_cannot_be_is_refused(url: str, path: str) -> None:
    assert get(url, path).status_code == 422


def test_an_unknown_node_is_404_with_code_and_hint(url: str) -> None:
    answer = get(url, "/api/nodes/nobody")
    assert answer.status_code == 404
    assert answer.json() == {
        "code": "node-unknown",
        "message": "no node is called 'nobody'",
        "hint": "See who reported with `bascule-server node list DIR`.",
    }


def test_the_api_only_reads(url: str) -> None:
    paths = json.loads(get(url, "/api/openapi.json").text)["paths"]
    assert {method for path in paths.values() for method in path} == {"get"}
    for path in paths:
        answer = requests.post(f"{url}/api{path}", json={}, timeout=30)
        assert answer.status_code == 405


def test_the_api_brings_no_page_that_loads_from_elsewhere(url: str) -> None:
    assert get(url, "/api/docs").status_code == get(url, "/api/redoc").status_code == 404
