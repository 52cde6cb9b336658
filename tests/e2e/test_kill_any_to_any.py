"""`kill -9` in the middle of installs that fetch only what the node lacks.

As `test_kill`, but the payloads are laid out by age and most of each image is what the node has.
The process is killed by what the mirror has sent, so that every kill hits an install.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from images.build import build
from images.reader import verify_file
from tests.sim.payload_server import Manners
from tests.sim.world import World, payload_key
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE

pytestmark = pytest.mark.e2e

KILLS = 6
KILLS_EACH = 3  # of one version
MIB = 1024 * 1024
IN_FLIGHT = 2 * MIB  # read of the network, and not on the disk yet when the process dies
LIMIT_SECS = 300.0


class AgedWorld(World):
    """A world whose payloads name all before them."""

    @override
    def payload(self, version: str, *, rollback_index: int) -> Path:
        earlier = [self.folder / f"{made}.crau" for made in self.images if made != version]
        if version not in self.images:
            self.image(version, rollback_index=rollback_index)
        output = self.folder / f"{version}.crau"
        after = [path for path in reversed(earlier) if path.exists()]
        build([("usr", self.images[version])], output, keys=[payload_key()], after=after)
        return output


class Noise:
    """Bytes that do not pack, of which the next image has five eighths again."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._eighths: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        if not self._eighths:
            self._eighths = [self._chance.randbytes(size // 8) for _ in range(8)]
        for number in self._chance.sample(range(8), 3):
            self._eighths[number] = self._chance.randbytes(size // 8)
        return b"".join(self._eighths)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgedWorld]:
    with AgedWorld(tmp_path, image_size=8 * MIB, noise=Noise(3)) as made:
        yield made


def live(world: World, until_sent: int) -> bool:
    """Let the node's process live until it asks for a reboot, or was sent so much; kill it.

    Returns:
        Whether it was killed at work.
    """
    asked = world.folder / "run" / REBOOT_FILE
    command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "daemon"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_SECS
    looked = time.monotonic()
    try:
        while not asked.exists() and world.payloads.sent < until_sent:
            assert time.monotonic() < deadline, "the node neither fetches nor reboots"
            if time.monotonic() - looked > 1.0:  # what is seldom true and dear to tell
                if settled(world):
                    break
                looked = time.monotonic()
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if asked.exists():
        world.power().boot_once()
        return False
    return world.payloads.sent >= until_sent


def settled(world: World) -> bool:
    """Tell whether the node runs the newest version, confirmed, and has nothing to do."""
    node = world.node()
    booted = node.boot().slot
    newest = list(world.images)[-1]
    return (
        node.store.read_state().state is State.IDLE
        and node.loader.read().slots[booted].confirmed
        and node.running().version == newest
    )


def test_a_node_killed_in_installs_of_what_it_lacks_ends_with_the_right_image(
    world: AgedWorld,
) -> None:
    world.boot()
    world.payloads.manners = Manners(pause_s=0.02)
    chance = random.Random(11)
    kills = version = 0
    allowed = full = 0
    while kills < KILLS:
        version = version + 1 if version else 2
        name = f"{version}.0.0"
        before, at_first = world.payloads.sent, kills
        full += len(world.release(name, rollback_index=version))
        young, fixed = cost_of(world.folder / f"{name}.crau")
        while not settled(world):
            most = fixed // 2 + chance.randrange(young + fixed)
            if kills - at_first == KILLS_EACH:
                most = young + 2 * (fixed + IN_FLIGHT)
            kills += live(world, world.payloads.sent + most)
        tries = kills - at_first + 1
        assert world.payloads.sent - before <= young + tries * (fixed + IN_FLIGHT)
        allowed += young + fixed
        booted = world.node().boot().slot
        assert world.slot_bytes(booted) == world.image_bytes(name)
        assert world.slot_bytes(booted.other) == world.image_bytes(f"{version - 1}.0.0")
    print(f"kills={kills} sent={world.payloads.sent} lacked={allowed} payloads={full}")
    assert allowed < full / 2


def cost_of(payload: Path) -> tuple[int, int]:
    """Return the bytes that a node at the version before lacks, and those of metadata and index."""
    metadata = verify_file(payload, None)
    part = metadata.manifest.parts[0]
    young = part.operations[-part.ages[-1] :]
    fixed = metadata.header.data_offset + metadata.manifest.index_bytes + 4096
    return sum(operation.data_length for operation in young), fixed
