"""Twenty whole nodes and a real etcd: never more than three are down by our doing.

Each node is the shipped daemon in a process of its own on its own GPT disk file; etcd is
restarted while they contend. The permit document is read at every revision afterwards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from partitions.slots import Slot
from tests.sim.etcd import EtcdServer, running_etcd
from tests.sim.world import World
from updater.lifecycle import State

pytestmark = pytest.mark.e2e

NODES = 20
IMAGE_BYTES = 1024 * 1024  # what is contended for is the permit
PLACES = 3
LIMIT_SECS = 240.0
GROUP = "fleet"


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd") as server:
        yield server


def settle(world: World, folder: Path, number: int, etcd_url: str) -> World:
    """Give a node of the fleet its own disk and settings; all follow the same repository."""
    node = World(folder, image_size=IMAGE_BYTES)
    node.repository, node.server, node.payloads = world.repository, world.server, world.payloads
    node.images = world.images
    folder.mkdir()
    subprocess.run(["cp", "--sparse=always", world.disk, node.disk], check=True)
    (folder / "machine-id").write_text(f"{number:032x}\n")
    shutil.copyfile(world.folder / "payload.pub.pem", folder / "payload.pub.pem")
    permit = (
        f'\n[permit]\nkind = "etcd"\ngroup = "{GROUP}"\nendpoints = ["{etcd_url}"]\n'
        f"max = {PLACES}\n"
    )
    node.write_settings(
        extra=permit, alias=f'"node-{number}"', deadline_secs="60", poll_interval_secs="600"
    )
    return node


def is_done(node: World) -> bool:
    state = node.folder / "state/state.json"
    if not state.exists():
        return False
    memory = json.loads(state.read_bytes())
    at_rest = memory["state"] == State.IDLE.value and memory["permit"] == "none"
    return bool(at_rest and memory["slots"].get("b", {}).get("version") == "2.0.0")


def test_twenty_nodes_reboot_at_most_three_at_a_time(tmp_path: Path, etcd: EtcdServer) -> None:
    with ExitStack() as stack:
        world = stack.enter_context(World(tmp_path / "world", image_size=IMAGE_BYTES))
        world.release("2.0.0", rollback_index=2)
        nodes = [settle(world, tmp_path / f"node-{n}", n, etcd.url) for n in range(NODES)]
        for node in nodes:
            command = [sys.executable, "-m", "updater.machine_model", "--config", str(node.config)]
            log = stack.enter_context((node.folder / "console.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        deadline = time.monotonic() + LIMIT_SECS
        restarted = False
        while not all(is_done(node) for node in nodes):
            assert time.monotonic() < deadline, [is_done(node) for node in nodes]
            if not restarted and sum(is_done(node) for node in nodes) >= NODES // 4:
                etcd.kill()
                time.sleep(1)
                etcd.start()
                restarted = True
            time.sleep(0.5)

        assert restarted
        for node in nodes:
            assert node.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
            assert node.node().boot().slot is Slot.B
    holders = [
        len(json.loads(revision.value)["holders"])
        for revision in etcd.history(f"/bascule/permit/{GROUP}/document")
        if revision.value is not None
    ]
    print(f"nodes={NODES} revisions={len(holders)} most holders={max(holders)}")
    assert max(holders) <= PLACES
    assert len(holders) >= 2 * NODES, "each node takes and returns one"
    assert holders[-1] == 0
