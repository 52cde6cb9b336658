"""`kill -9` of the node's process at random points of an update: it always ends well.

The daemon is the shipped one in a process of its own; the mirror is a real HTTP server that
counts what it sends. Bounds are those of issue 2: with ranges, all downloads together are at
most the payload plus 16 MiB a kill; without, at most one re-read a kill.
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

from tests.sim.payload_server import Manners
from tests.sim.world import World
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE

pytestmark = pytest.mark.e2e

KILLS = 50
SLACK_BYTES = 16 * 1024 * 1024
LIMIT_SECS = 300.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


class Mains:
    """Starts the node's process, kills it, and boots the machine when it asks for a reboot."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._asked = world.folder / "run" / REBOOT_FILE
        self.kills = 0

    def live(self, longest_secs: float) -> None:
        """Let the process live for a random time, or until it asks for a reboot."""
        command = [sys.executable, "-m", "updater.cli", "--config", str(self._world.config)]
        process = subprocess.Popen([*command, "daemon"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + self._chance.uniform(0.0, longest_secs)
        try:
            while time.monotonic() < end and not self._asked.exists():
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if self._asked.exists():
            self._world.power().boot_once()
        else:
            self.kills += 1


def runs(world: World, version: str) -> bool:
    node = world.node()
    at_rest = node.store.read_state().state is State.IDLE
    booted = node.boot().slot
    confirmed = node.loader.read().slots[booted].confirmed
    return at_rest and confirmed and node.running().version == version


@pytest.mark.parametrize("ranges", [True, False])
def test_a_node_killed_at_random_points_ends_with_the_right_image(
    world: World, ranges: bool
) -> None:
    world.boot()
    # Slow enough that most kills hit the download and the writing.
    world.payloads.manners = Manners(ranges=ranges, pause_s=0.03 if ranges else 0.008)
    mains = Mains(world, seed=7)
    payload_bytes, version = 0, 1
    deadline = time.monotonic() + LIMIT_SECS
    while mains.kills < KILLS:
        version += 1
        name = f"{version}.0.0"
        payload_bytes += len(world.release(name, rollback_index=version))
        while not runs(world, name):
            assert time.monotonic() < deadline, f"{name} is not reached after {mains.kills} kills"
            mains.live(longest_secs=3.0)
        booted = world.node().boot().slot
        assert world.slot_bytes(booted) == world.image_bytes(name)
        assert world.slot_bytes(booted.other) == world.image_bytes(f"{version - 1}.0.0")

    a_kill = SLACK_BYTES if ranges else payload_bytes // (version - 1)
    print(
        f"kills={mains.kills} updates={version - 1} sent={world.payloads.sent} "
        f"payloads={payload_bytes} ranges={ranges}"
    )
    assert world.payloads.sent <= payload_bytes + mains.kills * a_kill
