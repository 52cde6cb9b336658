"""The real `bascule-server` process: commands beside it, python-tuf's client, curl, its end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from tuf.ngclient import Updater

from images.release import parse_channel_document, tuf_channel_path
from server.desk import Desk, now_utc
from server.durable import replace_durably
from server.queries import groups
from server.repository import Repository
from server.steering import set_group
from tests.sim.desk import (
    BOARD,
    PRODUCT,
    Clock,
    SimNode,
    found_desk,
    nodes,
    payload_bytes,
    promote,
    publish,
    serving,
)
from tests.sim.desk_process import PROGRAM, READY_S, command, done, process
from updater.omaha import decode_response, encode_request

pytestmark = pytest.mark.e2e

CURL = shutil.which("curl")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk of today, for clients that look at the real clock."""
    made = found_desk(tmp_path / "desk", clock=Clock(now_utc())).desk
    yield made
    made.store.close()


def current(url: str, root: bytes, state: Path) -> str | None:
    """Return the channel's current version, as python-tuf's own client sees it over HTTP."""
    state.mkdir(exist_ok=True)
    base = f"{url}/repository"
    client = Updater(
        str(state), f"{base}/metadata/", str(state), f"{base}/targets/", bootstrap=root
    )
    client.refresh()
    target = client.get_targetinfo(tuf_channel_path("stable", PRODUCT, BOARD))
    if target is None:
        return None
    document = parse_channel_document(Path(client.download_target(target)).read_bytes())
    payload = client.get_targetinfo(document.allowed[document.current][0])
    assert payload is not None
    client.download_target(payload, str(state / "payload.crau"))
    return document.current


def root_of(desk: Desk) -> bytes:
    return (desk.repository.metadata_folder / "1.root.json").read_bytes()


def api(url: str, path: str) -> Any:  # noqa: ANN401  # JSON
    return requests.get(f"{url}/api/{path}", timeout=30).json()["items"]


def test_the_whole_way_by_commands_beside_a_running_server(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    done("init", folder, "--product", PRODUCT, "--board", BOARD, "--channel", "stable")
    root = (folder / "repository/metadata/1.root.json").read_bytes()
    with process(folder) as (url, running):
        assert requests.get(f"{url}/healthz", timeout=30).json()["status"] == "ok"
        assert current(url, root, tmp_path / "client") is None
        for version in ("1.0.0", "2.0.0"):
            payload = tmp_path / f"{version}.crau"
            payload.write_bytes(payload_bytes(version))
            done("release", "add", folder, payload, "--version", version)
            done("channel", "promote", folder, "stable", version)
            assert current(url, root, tmp_path / "client") == version
        node = SimNode("a" * 32)
        answer = requests.post(
            f"{url}/v1/update/", data=encode_request(node.request(check=True)), timeout=30
        )
        check = decode_response(answer.content).apps[0].update_check
        assert check is not None
        assert check.codebases == (f"{url}/payloads/",)
        assert check.manifests[0].version == "2.0.0"
        done("group", "pause", folder, "default", "--reason", "holiday")
        (group,) = api(url, "groups")
        assert (group["paused"], group["under_way"]) == (True, 1)
        shown = json.loads(done("node", "show", folder, "a" * 32, "--json"))
        assert shown["node"]["version"] == "1.0.0"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


def test_the_server_signs_by_itself_when_it_starts_late(tmp_path: Path) -> None:
    """The timestamp was made 20 hours ago: serve renews it at once, with online keys only."""
    clock = Clock(now_utc() - timedelta(hours=20))
    desk = found_desk(tmp_path / "desk", clock=clock).desk
    desk.store.close()
    shutil.rmtree(desk.folder / "keys/offline")
    with process(desk.folder) as (url, _):
        deadline = time.monotonic() + READY_S
        version = 1
        while version == 1 and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = requests.get(f"{url}/repository/metadata/timestamp.json", timeout=30)
            version = answer.json()["signed"]["version"]
        assert version == 2


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_curl_resumes_a_payload_where_it_was_cut(desk: Desk, tmp_path: Path) -> None:
    added = publish(desk, "1.0.0")
    data = payload_bytes("1.0.0")
    partly = tmp_path / "partly.crau"
    partly.write_bytes(data[:1000])
    assert CURL is not None
    with process(desk.folder) as (url, _):
        address = f"{url}/payloads/{added.sha256}.crau"
        fetched = subprocess.run(
            [CURL, "-sS", "--fail", "-C", "-", "-o", partly, "-w", "%{http_code}", address],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert fetched.stdout == "206"
        assert hashlib.sha256(partly.read_bytes()).hexdigest() == added.sha256
        two = subprocess.run(
            [CURL, "-sS", "--fail", "-r", "0-9,100-109", address],
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert data[:10] in two.stdout
        assert data[100:110] in two.stdout


@pytest.mark.parametrize("limit", [1, 5])
def test_forty_checks_at_once_over_http_and_two_servers_get_exactly_the_grants(
    desk: Desk, limit: int
) -> None:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    set_group(desk, "default", channel=None, changes={"max_concurrent": limit})
    fleet = nodes(40)
    gate = threading.Barrier(len(fleet))
    told = [""] * len(fleet)

    def ask(index: int, url: str) -> None:
        body = encode_request(fleet[index].request(check=True, ping=True))
        gate.wait()
        answer = requests.post(f"{url}/v1/update/", data=body, timeout=60)
        check = decode_response(answer.content).apps[0].update_check
        assert check is not None
        told[index] = check.reason or check.status

    with process(desk.folder) as (first, _), process(desk.folder) as (second, _):
        threads = [
            threading.Thread(target=ask, args=(n, (first, second)[n % 2]))
            for n in range(len(fleet))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told.count("ok") == limit
    assert told.count("rollout-concurrency") == 40 - limit
    with desk.store.reading() as connection:
        assert groups(connection, desk.settings, now_s=desk.now_s())[0].under_way == limit


def test_a_reader_at_any_instant_sees_a_whole_repository(desk: Desk, tmp_path: Path) -> None:
    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    ended = threading.Event()
    seen: list[str | None] = []
    troubles: list[BaseException] = []

    def read_on(url: str) -> None:
        while not ended.is_set():
            try:
                seen.append(current(url, root_of(desk), tmp_path / f"client-{len(seen) % 2}"))
            except Exception as trouble:  # noqa: BLE001  # whatever it is, the test shows it
                troubles.append(trouble)

    with process(desk.folder) as (url, _):
        reader = threading.Thread(target=read_on, args=(url,))
        reader.start()
        versions = [f"2.0.{number}" for number in range(8)]
        for version in versions:
            publish(desk, version)
            promote(desk, version)
        while len(seen) < 2 and not troubles:
            time.sleep(0.05)
        ended.set()
        reader.join()
        assert current(url, root_of(desk), tmp_path / "last") == versions[-1]
    assert troubles == []
    assert set(seen) <= {"1.0.0", *versions}


class PowerCutError(BaseException):
    """No handler under test outlives it."""


@pytest.mark.parametrize("writes", range(4))
def test_a_crash_between_two_writes_of_a_promotion_is_invisible_over_http(
    desk: Desk, tmp_path: Path, writes: int
) -> None:
    left = writes

    def cut(path: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        replace_durably(path, data)

    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    publish(desk, "2.0.0")
    with serving(desk) as url:
        assert current(url, root_of(desk), tmp_path / "old") == "1.0.0"
        broken = Repository(desk.folder / "repository", clock=desk.clock, write=cut)
        with pytest.raises(PowerCutError):
            promote(replace(desk, repository=broken), "2.0.0")
        assert current(url, root_of(desk), tmp_path / "old") == "1.0.0"
        assert current(url, root_of(desk), tmp_path / "new") == "1.0.0"
        promote(desk, "2.0.0")
        assert current(url, root_of(desk), tmp_path / "old") == "2.0.0"


@pytest.mark.parametrize("after_ms", [300, 600, 900, 1200])
def test_a_killed_promotion_leaves_a_whole_repository_and_no_lock(
    desk: Desk, tmp_path: Path, after_ms: int
) -> None:
    publish(desk, "1.0.0")
    promote(desk, "1.0.0")
    publish(desk, "2.0.0")
    victim = subprocess.Popen(
        [PROGRAM, "channel", "promote", desk.folder, "stable", "2.0.0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_ms / 1000)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(30)
    with serving(desk) as url:
        assert current(url, root_of(desk), tmp_path / "client") in {"1.0.0", "2.0.0"}
        promote(desk, "2.0.0")
        assert current(url, root_of(desk), tmp_path / "client") == "2.0.0"


def test_bad_input_of_the_real_command_is_told_in_three_lines(tmp_path: Path) -> None:
    finished = command("serve", tmp_path / "nowhere")
    assert finished.returncode == 2
    assert [line.split(":")[0] for line in finished.stderr.splitlines()] == [
        "error", "hint", "code",
    ]  # fmt: skip
    assert finished.stdout == ""
