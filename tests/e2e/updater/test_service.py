"""The service as systemd starts it: what it says on the notification socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.journal import Datagrams
from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater.engine import Engine

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "world", image_size=512 * 1024) as made:
        made.write_settings(poll_interval_secs="3600", reboot='"manual"')
        run_until(Engine(node=made.boot()), "idle")
        yield made


def start(world: World, address: Path, **more: str) -> subprocess.Popen[bytes]:
    """Start the service as systemd does, with whom to notify."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "updater.cli", "--config", str(world.config), "daemon"],
        env=dict(os.environ, PYTHONPATH=path, NOTIFY_SOCKET=str(address), **more),
        stderr=subprocess.PIPE,
    )


def until(systemd: Datagrams, wanted: str) -> list[str]:
    """Return the messages up to the first that begins with `wanted`."""
    seen: list[str] = []
    while not (seen and seen[-1].startswith(wanted)):
        seen.append(systemd.next().decode())
    return seen


def test_it_is_ready_shows_an_update_lives_and_ends(world: World, tmp_path: Path) -> None:
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    with Datagrams(tmp_path / "notify") as systemd:
        with start(world, tmp_path / "notify", WATCHDOG_USEC="1000000") as service:
            before = until(systemd, "READY=1")
            assert any(message.startswith("STATUS=idle") for message in before)
            until(systemd, "STATUS=armed 2.0.0, waiting: reboots are manual here")
            until(systemd, "WATCHDOG=1")
            service.send_signal(signal.SIGTERM)
            until(systemd, "STOPPING=1")
            assert service.stderr is not None
            said = service.stderr.read().decode()
        assert service.returncode == 0, said
        assert "<6>service ends" in said


def test_a_part_that_hangs_is_shown_when_the_watchdog_strikes(world: World, tmp_path: Path) -> None:
    with (
        Datagrams(tmp_path / "notify") as systemd,
        start(world, tmp_path / "notify") as service,
    ):
        until(systemd, "READY=1")
        service.send_signal(signal.SIGABRT)  # WatchdogSignal= of systemd.service(5)
        assert service.stderr is not None
        said = service.stderr.read().decode()
    assert service.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in said
    assert "in run\n" in said
