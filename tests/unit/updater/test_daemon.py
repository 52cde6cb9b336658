from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from typing_extensions import override

from tests.sim.lives import due_now, memory_of
from tests.sim.world import World, run_until
from updater import daemon
from updater.agent import Wait
from updater.bus.service import BusService
from updater.bus.session import Place
from updater.daemon import Daemon
from updater.engine import Engine
from updater.lifecycle import State
from updater.node import Node
from updater.permit.contract import Node as Asker
from updater.permit.contract import Permit, Waiting, WaitReason
from updater.permit.errors import PermitKeeperError
from updater.permit.none import NoPermits

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A, rests and does not check by itself."""
    with World(tmp_path, image_size=512 * 1024) as made:
        made.write_settings(poll_interval_secs="3600")
        run_until(Engine(node=made.boot()), "idle")
        yield made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are waited out in moments here."""
    monkeypatch.setattr(daemon, "ERROR_PAUSE_SECS", 0.001)
    monkeypatch.setattr(daemon, "PAUSE_MAX_SECS", 0.001)
    monkeypatch.setattr(daemon, "WORKER_PAUSE_SECS", 0.001)


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the codes of the steps that failed, as they were logged."""
    messages = [record.getMessage() for record in caplog.records]
    return [text.split("code=")[1].split()[0] for text in messages if "step failed" in text]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait a minute at most for what takes a moment; the test then sees what came of it."""
    for _ in range(30_000):
        if condition():
            return
        time.sleep(0.002)


class OddPermits(NoPermits):
    """Never grants; waiting for it fails in a new way each time, then ends the service."""

    def __init__(self, node: Node) -> None:
        super().__init__(node=Asker(id="0" * 32, host="node"), now=lambda: NOW)
        self._stop = node.stop
        self.failures: list[Exception] = [
            PermitKeeperError("the cluster was changed"),
            OSError("too many open files"),
        ]

    @override
    def acquire(self, reason: str, *, version: str | None = None) -> Permit | Waiting:
        return Waiting(reason=WaitReason.FULL, sentence="every place is taken")

    @override
    def wait(self, timeout_s: float) -> bool:
        if self.failures:
            raise self.failures.pop(0)
        self._stop.set()
        return False


def test_it_outlives_a_keeper_of_permits_that_fails(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.write_settings(poll_interval_secs="3600", reboot='"manual"')
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "reboot-manual")
    world.write_settings(poll_interval_secs="3600")
    node = world.node()
    permits = OddPermits(node)
    node.permits = lambda: permits
    Daemon(node).run()
    assert codes(caplog) == ["permit-keeper", "system"]
    assert memory_of(world).waiting_code == "permit-full"


def test_it_outlives_a_disk_that_goes_away(world: World, caplog: pytest.LogCaptureFixture) -> None:
    node = world.node()
    real = node.machine.uptime
    failures: list[Exception] = [OSError("no such device"), OSError("no such device")]

    def uptime() -> timedelta:
        if failures:
            raise failures.pop()
        node.stop.set()
        return real()

    node.machine.uptime = uptime  # type: ignore[method-assign]  # this one machine's
    Daemon(node).run()
    assert codes(caplog) == ["system", "system"]


def test_it_ends_when_it_is_told_to(world: World) -> None:
    node = world.node()
    node.stop.set()
    Daemon(node).run()


def worker(script: str) -> list[str]:
    return [sys.executable, "-c", script]


class TestTheWorker:
    """Checks and installs run in a process of their own."""

    def run_with(self, world: World, script: str) -> Node:
        due_now(world)
        node = world.node()
        Daemon(node, worker(script)).run()
        return node

    def until(self, node: Node, file: Path) -> threading.Thread:
        """End the service as soon as `file` is there."""

        def watch() -> None:
            wait_until(file.exists)
            node.stop.set()

        thread = threading.Thread(target=watch)
        thread.start()
        return thread

    def start(self, world: World, script: str, seen: Path) -> None:
        due_now(world)
        node = world.node()
        watcher = self.until(node, seen)
        Daemon(node, worker(script)).run()
        watcher.join()

    def test_is_told_what_to_do(self, world: World, tmp_path: Path) -> None:
        seen = tmp_path / "seen"
        script = f"import sys; open({str(seen)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
        self.start(world, script, seen)
        assert seen.read_text().splitlines()[0] == "--action check"

    @pytest.mark.parametrize(("status", "failed"), [(0, False), (4, False), (3, True), (1, True)])
    def test_that_fails_is_noted_and_tried_again(
        self,
        world: World,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        status: int,
        failed: bool,
    ) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        script = (
            "import os, sys\n"
            f"first, second = {str(first)!r}, {str(second)!r}\n"
            "open(second if os.path.exists(first) else first, 'w').close()\n"
            f"sys.exit({status})"
        )
        self.start(world, script, second)
        assert ("step-failed" in codes(caplog)) == failed

    def test_is_stopped_with_the_service(self, world: World, tmp_path: Path) -> None:
        begun, stopped = tmp_path / "begun", tmp_path / "stopped"
        script = (
            "import signal, sys, time\n"
            f"end = lambda *_: (open({str(stopped)!r}, 'w').close(), sys.exit(0))\n"
            "signal.signal(signal.SIGTERM, end)\n"
            f"open({str(begun)!r}, 'w').close()\n"
            "time.sleep(1000)"
        )
        self.start(world, script, begun)
        assert stopped.exists()


class TestTheRealWorker:
    def test_installs(self, world: World) -> None:
        world.write_settings(poll_interval_secs="3600", reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()

        def watch() -> None:
            wait_until(lambda: memory_of(world).state is State.ARMED)
            node.stop.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        script = "import sys; from updater.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [*worker(script), "--config", str(world.config), "step"]
        Daemon(node, command).run()
        watcher.join()
        assert node.loader.read().target is node.boot().slot.other


def test_a_wait_whose_end_has_come_is_short_and_none_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause: Callable[[datetime | None, datetime], float] = daemon._pause
    monkeypatch.undo()
    assert pause(NOW - timedelta(days=1), NOW) == daemon.PAUSE_MIN_SECS
    assert pause(NOW + timedelta(days=1), NOW) == daemon.PAUSE_MAX_SECS
    assert pause(None, NOW) == daemon.PAUSE_MAX_SECS


@pytest.mark.parametrize(
    ("level", "message", "line"),
    [
        (logging.INFO, "state changed", "<6>state changed"),
        (logging.WARNING, "step failed", "<4>step failed"),
        (logging.ERROR, "trial failed", "<3>trial failed"),
        (logging.DEBUG, "asking", "<7>asking"),
        (logging.INFO, "a \x1b[2J b \x07", "<6>a ?[2J b ?"),
    ],
)
def test_a_log_line_has_its_priority_and_no_control_characters(
    level: int, message: str, line: str
) -> None:
    record = logging.LogRecord("updater", level, "", 0, message, None, None)
    assert daemon._JournalFormatter("%(message)s").format(record) == line


def test_waits_of_permits_are_known_by_their_code() -> None:
    """The loop lets the keeper wait for those, so that a change in the cluster wakes it."""
    assert all(reason.value.startswith(daemon.PERMIT_CODES) for reason in WaitReason)
    assert not Wait(until=None, code="idle", sentence="").code.startswith(daemon.PERMIT_CODES)


def test_a_verb_that_is_under_way_is_waited_for_and_no_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = world.node()
    service = Daemon(node)
    with world.node().locked():
        thread = threading.Thread(target=service.run)
        thread.start()
        wait_until(lambda: "waiting code=engine-busy" in caplog.text)
        time.sleep(0.05)  # many rounds more
        node.stop.set()
        thread.join()
    assert codes(caplog) == []
    assert caplog.text.count("waiting code=engine-busy") == 1


def test_a_wake_ends_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "PAUSE_MAX_SECS", 3600.0)
    node = world.node()
    wakes: list[Callable[[], None]] = []
    rounds: list[int] = []
    service = Daemon(node, bus=lambda woken: _no_bus(wakes, woken))
    monkeypatch.setattr(service, "_wake_reporter", lambda: rounds.append(1))
    thread = threading.Thread(target=service.run)
    thread.start()
    wait_until(lambda: bool(rounds))
    before = len(rounds)
    wakes[0]()
    wait_until(lambda: len(rounds) > before)
    node.stop.set()
    thread.join()
    assert len(rounds) > before


def _no_bus(wakes: list[Callable[[], None]], woken: Callable[[], None]) -> BusService:
    """Return a service that is never on a bus, and remember how it would wake the loop."""
    wakes.append(woken)
    place = Place(node=_NOWHERE, command=[], compatible=False, woken=woken)
    return BusService(place, "unix:path=/nowhere/at/all")


_NOWHERE = cast("Node", None)  # never asked: there is no bus
