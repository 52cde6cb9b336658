"""A delta that `release add --deltas-from` made of real file systems, installed by a node."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.signing import private_pem
from partitions.slots import Slot
from tests.sim.desk_process import done, facts, process
from tests.sim.plain import is_armed
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, payload_key, run_until
from updater.engine import Engine
from updater.verbs import perform

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three versions of a small ext4 that differ little; the node runs the second."""
    noise = random.Random(5).randbytes(4 * 1024 * 1024)
    with World(tmp_path, noise=lambda size: noise[:size]) as made:
        yield made


def release(world: World, desk: Path, version: str, index: int, *more: object) -> None:
    world.payload(version, rollback_index=index)
    done(
        "release", "add", desk, world.folder / f"{version}.crau", "--version", version,
        "--rollback-index", index, "--public-key", world.folder / "payload.pub.pem", *more,
    )  # fmt: skip
    done("channel", "promote", desk, "stable", version)


def test_a_node_installs_a_delta_that_the_desk_made(world: World) -> None:
    desk = world.folder / "desk"
    key = world.folder / "payload.key.pem"
    key.write_bytes(private_pem(payload_key()))
    done("init", desk, "--product", PRODUCT, "--board", BOARD, "--channel", "stable")
    release(world, desk, "0.9.0", 0)
    release(world, desk, "1.0.0", 1)
    release(world, desk, "2.0.0", 2, "--deltas-from", 2, "--payload-key", key)

    shown = facts("release", "show", desk, "2.0.0")
    sizes = {one["delta_from"]: one["size"] for one in shown["payloads"]}
    assert sizes.keys() == {"", "1.0.0", "0.9.0"}
    assert sizes["1.0.0"] < sizes[""] // 10
    listed = done("release", "list", desk)
    assert "TO     FULL" in listed
    assert list(desk.glob("making-*")) == []

    with process(desk) as (url, _):
        world.write_settings(
            mirrors="[]",
            metadata_url=f'"{url}/repository/metadata/"\nroot_file = "{desk}/repository/metadata'
            '/1.root.json"',
            poll_interval_secs=f'3600\nomaha_url = "{url}/v1/update/"',
        )
        node = world.boot()
        found = perform(node, "check", {}, by="test")
        assert (found["kind"], found["cost"]) == ("delta", sizes["1.0.0"])
        perform(world.node(), "update", {}, by="test")
        node = world.node()
        assert is_armed(node)
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        (armed,) = [entry for entry in node.store.history() if entry["what"] == "armed"]
        assert (armed["kind"], armed["downloaded"]) == ("delta", sizes["1.0.0"])
        node = world.boot()
        run_until(Engine(node=node), "idle")
        assert node.running().version == "2.0.0"
