"""What an idle node costs: CPU of `bascule status`, resident memory of the daemon."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sim.message_bus import MessageBus
from tests.sim.world import World
from updater.lifecycle import State

pytestmark = pytest.mark.bench

RUNS = 9
WARM_UP_SECS = 30.0


def test_status_and_idle_daemon(tmp_path: Path) -> None:
    with MessageBus() as bus, World(tmp_path / "node") as world:
        world.write_settings(f'[bus]\naddress = "{bus.address}"\n', poll_interval_secs="3600")
        world.boot()
        command = [sys.executable, "-m", "updater.cli", "--config", str(world.config)]
        process = subprocess.Popen([*command, "daemon"], stderr=subprocess.DEVNULL)
        try:
            resident = idle_memory_mib(world, process.pid)
            cpu = [cpu_of([*command, "status"]) for _ in range(RUNS)]
            bare = [cpu_of([sys.executable, "-c", "pass"]) for _ in range(RUNS)]
        finally:
            process.terminate()
            process.wait()
    print(
        f"\nbascule status: {statistics.median(cpu):.3f} s CPU (bare python "
        f"{statistics.median(bare):.3f}; at most 0.2), idle daemon on the bus after a check: "
        f"{resident:.1f} MiB resident (at most 45)"
    )


def idle_memory_mib(world: World, pid: int) -> float:
    """Return the daemon's memory once it has checked and rests."""
    deadline = time.monotonic() + WARM_UP_SECS
    while time.monotonic() < deadline:
        memory = world.node().store.read_state()
        if memory.state is State.IDLE and memory.last_check and memory.permit == "none":
            break
        time.sleep(0.2)
    time.sleep(6)  # one rest of the loop: what a check left behind is given back
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu_of(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
