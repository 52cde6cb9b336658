"""`make demo`: three nodes follow a channel from 1.0.0 to 2.0.0, and survive a broken 3.0.0.

Everything is real but the firmware: images, payloads, keys, server, etcd, daemons, GPT disks.
Ends with status 0 only when what the last lines claim was measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from demo.fleet import Node, World, wait_for
from demo.programs import free_port, run, start_etcd, start_server
from demo.versions import BOARD, PRODUCT, Version, make_image

VERSIONS: Final = (
    Version(name="1.0.0", rollback_index=1),
    Version(name="2.0.0", rollback_index=2),
    Version(name="3.0.0", rollback_index=3, healthy=False),
)
NODES: Final = 3
LIMIT_SECS: Final = 120.0
PERMIT_KEY: Final = "/bascule/permit/demo/document"


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--keep", action="store_true", help="leave the server up at the end")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also then nothing stays behind
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="bascule-demo-"))
    print(f"everything lies in {folder}")
    with ExitStack() as stack:
        good = _demo(folder, stack, began)
        if keep:
            print("the server stays up until you press Ctrl-C", flush=True)
            try:
                time.sleep(24 * 3600)
            except KeyboardInterrupt:
                print("\nending")
    if good and not keep:  # else logs and disks stay to be looked at
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def _demo(folder: Path, stack: ExitStack, began: float) -> bool:
    etcd, etcd_url = start_etcd(folder)
    stack.callback(etcd.end)
    desk, port = folder / "desk", free_port()
    images = _publish_keys(desk, port, folder)
    server, url = start_server(desk, port, folder / "server.log")
    stack.callback(server.end)
    _say(began, f"release server and dashboard at {url}, etcd at {etcd_url}")
    world = World(
        server=url, etcd=etcd_url, payload_key=folder / "payload.pub.pem", first_image=images[0]
    )
    fleet = [Node(f"node-{n + 1}", f"{n + 1:032x}", folder / f"node-{n + 1}") for n in range(NODES)]
    for node in fleet:
        node.build(world)
        stack.callback(node.switch_off)
        node.switch_on()
    wait_for(fleet, _runs("1.0.0"), limit_secs=LIMIT_SECS, show=lambda seen: _show(began, seen))
    _say(began, "three nodes run 1.0.0 from slot a of their GPT disks")

    _promote(desk, folder, images[1], VERSIONS[1])
    _say(began, "2.0.0 is signed and promoted on channel stable")
    took = wait_for(
        fleet, _runs("2.0.0"), limit_secs=LIMIT_SECS, show=lambda seen: _show(began, seen)
    )
    _say(began, f"all nodes run 2.0.0, confirmed, after {took:.0f} s")

    run("bascule-server", "group", "set", desk, "demo", "--max", "1")
    _promote(desk, folder, images[2], VERSIONS[2])
    _say(began, "3.0.0 is promoted; its service does not start")
    wait_for(
        fleet,
        lambda facts: _runs("2.0.0")(facts) and _stopped(url),
        limit_secs=LIMIT_SECS,
        show=lambda seen: _show(began, seen),
    )
    time.sleep(5)  # nodes ask every 2 s: whoever could still get 3.0.0 would take it now
    return _conclude(began, fleet, url, etcd_url)


def _publish_keys(desk: Path, port: int, folder: Path) -> list[Path]:
    """Make the desk with its keys, the channel and the group; then the images."""
    run("bascule-image", "keygen", folder / "payload")
    url = f"http://127.0.0.1:{port}"
    named = ("--product", PRODUCT, "--board", BOARD, "--channel", "stable")
    run("bascule-server", "init", desk, *named, "--public-url", url)
    group = ("group", "create", desk, "demo", "--channel", "stable", "--poll-interval", "2")
    run("bascule-server", *group)
    root = desk / "repository/metadata/1.root.json"
    return [make_image(version, root, folder) for version in VERSIONS]


def _promote(desk: Path, folder: Path, image: Path, version: Version) -> None:
    """Build and sign the payload, add the release, put it on the channel."""
    payload = folder / f"{version.name}.crau"
    part = f"usr={image}"
    key = folder / "payload.key.pem"
    quick = ("--level", "3")  # nobody fetches it often enough to be worth half a minute
    run("bascule-image", "build", "--partition", part, "--output", payload, "--key", key, *quick)
    run(
        "bascule-server",
        *("release", "add", desk, payload, "--version", version.name),
        *("--rollback-index", str(version.rollback_index)),
        *("--public-key", folder / "payload.pub.pem"),
    )
    run("bascule-server", "channel", "promote", desk, "stable", version.name)


def _runs(version: str) -> Any:  # noqa: ANN401  # a predicate on a status
    def reached(facts: dict[str, Any]) -> bool:
        at_rest = facts["state"] in {"idle", "checking"} and facts["permit"] == "none"
        return bool(at_rest and facts["confirmed"] and facts["booted"]["version"] == version)

    return reached


def _stopped(url: str) -> bool:
    groups = _get(f"{url}/api/groups")
    return any(stop for group in groups["items"] for stop in group["stops"])


def _get(url: str, body: bytes | None = None) -> Any:  # noqa: ANN401  # JSON
    with urllib.request.urlopen(url, data=body, timeout=10) as reply:  # noqa: S310  # loopback
        return json.load(reply)


def _most_holders(etcd_url: str) -> tuple[int, int]:
    """Read the permit document at every revision; returns (most holders, revisions read)."""
    key = base64.b64encode(PERMIT_KEY.encode()).decode()
    newest = int(_range(etcd_url, key, 0)["header"]["revision"])
    most = 0
    for revision in range(1, newest + 1):
        for value in _range(etcd_url, key, revision).get("kvs", []):
            document = json.loads(base64.b64decode(value["value"]))
            most = max(most, len(document["holders"]))
    return most, newest


def _range(etcd_url: str, key: str, revision: int) -> Any:  # noqa: ANN401  # JSON
    body = json.dumps({"key": key, "revision": str(revision)}).encode()
    return _get(f"{etcd_url}/v3/kv/range", body)


def _conclude(began: float, fleet: Sequence[Node], url: str, etcd_url: str) -> bool:
    print("\nnode    slot  version  installs  downloaded MB  seconds to 2.0.0  refuses")
    tried_broken = 0
    for node in fleet:
        facts, history = node.status(), node.history()
        armed = [entry for entry in history if entry["what"] == "armed"]
        fetched = sum(int(entry["downloaded"]) for entry in armed)
        tried_broken += any(entry.get("version") == "3.0.0" for entry in armed)
        print(
            f"{node.name}  {facts['booted']['slot']:<4}  {facts['booted']['version']:<7}  "
            f"{len(armed):<8}  {fetched / 1e6:<13.1f}  {_seconds(history):<16.1f}  "
            f"{', '.join(facts['denied']) or '-'}"
        )
    most, revisions = _most_holders(etcd_url)
    claims = {
        "every node runs 2.0.0, confirmed": all(_runs("2.0.0")(node.status()) for node in fleet),
        f"at none of {revisions} etcd revisions held more than {most} node a permit": most == 1,
        "3.0.0 was booted on one node, which went back by itself": tried_broken == 1,
        "the server stopped the rollout of 3.0.0": _stopped(url),
    }
    print()
    for claim, holds in claims.items():
        print(f"{'proven' if holds else 'NOT SO'}: {claim}")
    _say(began, f"done; dashboard {url}")
    return all(claims.values())


def _seconds(history: Sequence[dict[str, Any]]) -> float:
    """Return the seconds between the begin of 2.0.0 and its confirmation."""
    from datetime import datetime

    times = {
        str(entry["what"]): datetime.fromisoformat(str(entry["at"]))
        for entry in history
        if entry.get("version") == "2.0.0"
    }
    if not {"update began", "confirmed"} <= times.keys():
        return float("nan")
    return (times["confirmed"] - times["update began"]).total_seconds()


def _show(began: float, seen: Sequence[tuple[Node, dict[str, Any]]]) -> None:
    parts = []
    for node, facts in seen:
        if not facts:
            parts.append(f"{node.name}: off")
            continue
        text = f"{node.name}: {facts['booted']['version']}/{facts['booted']['slot']}"
        update = facts["update"]
        if update and update["size"]:
            text += f" {facts['state']} {100 * update['done'] // update['size']}%"
        else:
            text += f" {facts['state']}"
        parts.append(text)
    _say(began, "  ".join(parts))


def _say(began: float, text: str) -> None:
    print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
