from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest
from typing_extensions import override

from tests.sim.journal import Datagrams
from tests.sim.lives import due_now, memory_of
from tests.sim.world import World, run_until
from updater import daemon
from updater.agent import Install, Wait
from updater.bus.service import BusService
from updater.bus.session import Place
from updater.daemon import Daemon
from updater.engine import Engine
from updater.errors import StateError
from updater.lifecycle import State
from updater.node import Node
from updater.notify import Notifier, Watchdog
from updater.permit.contract import Node as Asker
from updater.permit.contract import Permit, Waiting, WaitReason
from updater.permit.errors import PermitKeeperError
from updater.permit.none import NoPermits
from updater.progress import Progress
from updater.rebooting import look_at_health
from updater.state import NodeState, Update

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
        script = (
            "import pathlib, sys\n"
            f"draft = pathlib.Path({str(tmp_path / 'draft')!r})\n"
            "draft.write_text(' '.join(sys.argv[1:]))\n"
            f"draft.replace({str(seen)!r})"  # whole when it is seen: we are ended then
        )
        self.start(world, script, seen)
        assert seen.read_text() == "--action check"

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


def test_waits_of_permits_are_known_by_their_code() -> None:
    """The loop lets the keeper wait for those, so that a change in the cluster wakes it."""
    assert all(reason.value.startswith(daemon.PERMIT_CODES) for reason in WaitReason)
    assert not Wait(until=None, code="idle", sentence="").code.startswith(daemon.PERMIT_CODES)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestWhatSystemdIsTold:
    @pytest.fixture
    def systemd(self, tmp_path: Path) -> Iterator[Datagrams]:
        with Datagrams(tmp_path / "notify") as made:
            yield made

    @pytest.fixture
    def notifier(self, systemd: Datagrams) -> Notifier:
        return Notifier(systemd.address)

    def messages(self, systemd: Datagrams) -> list[str]:
        return [message.decode() for message in systemd.all()]

    def test_it_is_ready_before_its_first_step_which_may_wait_for_the_boot(
        self, world: World, systemd: Datagrams, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = world.node()
        seen: list[str] = []

        def step(_: Engine, *, heavy: bool) -> None:
            assert heavy
            seen.extend(self.messages(systemd))
            node.stop.set()

        monkeypatch.setattr(Engine, "step", step)
        Daemon(node, notifier=notifier).run()
        assert [text.partition("=")[0] for text in seen] == ["STATUS", "READY"]

    def test_it_is_not_ready_while_its_memory_cannot_be_read(
        self, world: World, systemd: Datagrams, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = world.node()
        real = node.store.read_state
        failures: list[Exception] = [StateError("no"), StateError("no")]

        def read_state() -> NodeState:
            if failures:
                assert "READY=1" not in self.messages(systemd)
                raise failures.pop()
            node.stop.set()
            return real()

        monkeypatch.setattr(node.store, "read_state", read_state)
        Daemon(node, notifier=notifier).run()
        assert "READY=1" in self.messages(systemd)

    def test_it_says_that_it_ends(
        self, world: World, systemd: Datagrams, notifier: Notifier
    ) -> None:
        node = world.node()
        node.stop.set()
        Daemon(node, notifier=notifier).run()
        assert self.messages(systemd) == ["STOPPING=1"]

    def test_it_shows_what_it_waits_for(
        self, world: World, systemd: Datagrams, notifier: Notifier
    ) -> None:
        world.write_settings(poll_interval_secs="3600", reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()

        def watch() -> None:
            wait_until(lambda: memory_of(world).waiting_code == "reboot-manual")
            node.stop.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        Daemon(node, notifier=notifier).run()
        watcher.join()
        last = [text for text in self.messages(systemd) if text.startswith("STATUS=")][-1]
        assert last == (
            "STATUS=armed 2.0.0, waiting: reboots are manual here: order one with "
            "`bascule reboot` [reboot-manual]"
        )

    def test_it_shows_the_progress_of_its_worker(
        self, world: World, systemd: Datagrams, notifier: Notifier, tmp_path: Path
    ) -> None:
        due_now(world)
        node = world.node()
        memory = memory_of(world)
        update = Update(
            version="2.0.0",
            rollback_index=2,
            previous_version="1.0.0",
            slot="b",
            began=NOW,
            size=1000,
        )
        writing = msgspec.structs.replace(memory, state=State.INSTALLING, update=update)
        node.progress.show(Progress(version="2.0.0", done=430, size=1000))
        node.store.write_state(writing)
        ended = tmp_path / "ended"

        def watch() -> None:
            for _ in range(1000):
                if b"43 %" in systemd.next():
                    break
            ended.touch()
            node.stop.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        script = f"import os, time\nwhile not os.path.exists({str(ended)!r}): time.sleep(0.05)"
        service = Daemon(node, worker(script), notifier=notifier)
        service._work(Install())
        watcher.join()
        assert ended.exists()

    def test_it_is_alive_while_its_worker_works(
        self, world: World, systemd: Datagrams, notifier: Notifier
    ) -> None:
        node = world.node()
        clock = Clock()

        def tick() -> float:
            clock.now += 30
            return clock.now

        watchdog = Watchdog(notifier.alive, limit_secs=300, monotonic=tick)
        Daemon(node, worker("import time; time.sleep(1)"), watchdog=watchdog)._work(Install())
        assert self.messages(systemd).count("WATCHDOG=1") > 3

    def test_a_step_that_hangs_ends_its_signs_of_life_though_other_parts_beat(
        self, world: World, systemd: Datagrams, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = world.node()
        clock = Clock()
        watchdog = Watchdog(notifier.alive, limit_secs=100, monotonic=clock)
        watchdog.expect("bus")
        before: list[str] = []
        after: list[str] = []

        def step(_: Engine, *, heavy: bool) -> None:
            assert heavy
            before.extend(self.messages(systemd))
            for _turn in range(100):  # as another thread would, while we hang
                clock.now += 10
                watchdog.beat("bus")
            after.extend(self.messages(systemd))
            node.stop.set()

        monkeypatch.setattr(Engine, "step", step)
        Daemon(node, watchdog=watchdog).run()
        assert before.count("WATCHDOG=1") == 1
        assert after.count("WATCHDOG=1") == 100 / 2 / 10

    def test_a_health_check_that_takes_long_is_no_hang(self, world: World) -> None:
        world.health = ["sleep", "1"]
        world.write_settings(poll_interval_secs="3600")
        node = world.node()
        beats: list[int] = []
        node.beat = lambda: beats.append(1)
        with node.locked() as memory:
            look_at_health(node, memory)
        assert len(beats) >= 5


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


SIGNALLED = """
import os, signal, threading, time
from updater.daemon import stop_on_signals
stop = threading.Event()
stop_on_signals(stop)
print("listening", flush=True)
with stop._cond:  # where a wait of this very thread is for a moment each time it begins and ends
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert not stop.is_set()
stop.wait()
print("stopped", flush=True)
"""


def test_a_signal_that_comes_within_a_wait_ends_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["listening", "stopped"]
