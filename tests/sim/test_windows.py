"""Reboot windows on a whole node, with a clock that jumps as tests like."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, memory_of
from tests.sim.world import World, run_until
from updater import assembly, daemon, zones
from updater.agent import Wait
from updater.cli import main
from updater.daemon import Daemon
from updater.engine import Engine
from updater.errors import EXIT_ARMED, EXIT_DONE
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE

WINDOW: Final = '[[reboot.windows]]\nstart = "Sun 02:00"\nlength = "4h"\ntimezone = "UTC"\n'
CLOSED: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
OPENS: Final = datetime(2026, 11, 29, 2, tzinfo=UTC)
CLOSES: Final = OPENS + timedelta(hours=4)


@dataclass
class Clock:
    """Shows what it is set to."""

    now: datetime = CLOSED

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A node that runs 1.0.0, reboots by itself on Sundays and checks when it is told to."""
    monkeypatch.setattr(assembly, "_now", clock)  # also of a command: the real one may be in it
    with World(tmp_path, image_size=512 * 1024, clock=clock) as made:
        configure(made)
        run_until(Engine(node=made.boot()), "idle")
        yield made


def configure(world: World, extra: str = WINDOW, **changes: str) -> None:
    world.write_settings(extra, poll_interval_secs="1000000", **changes)


def armed(world: World) -> Engine:
    """Install 2.0.0 outside of the window, up to the wait for it."""
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    engine = Engine(node=world.node())
    run_until(engine, "window-closed")
    return engine


def waits(engine: Engine) -> Wait:
    wait = engine.step()
    assert isinstance(wait, Wait)
    return wait


def ordered(world: World) -> bool:
    """Tell whether the machine was told to reboot."""
    return (world.folder / "run" / REBOOT_FILE).exists()


def test_outside_of_the_window_it_installs_and_waits_until_it_opens(world: World) -> None:
    wait = waits(armed(world))
    assert wait.until == OPENS
    assert wait.sentence.endswith("'Sun 02:00' for 4h opens Sun 2026-11-29 02:00 UTC")
    memory = memory_of(world)
    assert (memory.state, memory.waiting_code) == (State.ARMED, "window-closed")
    assert memory.permit == "none"
    assert not ordered(world)


def test_in_the_window_it_reboots(world: World, clock: Clock) -> None:
    engine = armed(world)
    clock.now = OPENS
    run_until(engine, "rebooting", steps=3)
    assert ordered(world)


def test_the_window_may_be_over_when_the_machine_comes_back(world: World, clock: Clock) -> None:
    engine = armed(world)
    clock.now = CLOSES - timedelta(seconds=1)
    run_until(engine, "rebooting", steps=3)
    clock.now = CLOSES + timedelta(minutes=5)
    run_until(Engine(node=world.boot()), "idle")
    assert world.node().running().version == "2.0.0"


def test_a_clock_that_jumps_over_the_window_opens_nothing(world: World, clock: Clock) -> None:
    engine = armed(world)
    clock.now = CLOSES
    wait = waits(engine)
    assert (wait.code, wait.until) == ("window-closed", OPENS + timedelta(days=7))


def test_a_clock_that_jumps_back_out_of_the_window_closes_it(world: World, clock: Clock) -> None:
    engine = armed(world)
    clock.now = OPENS
    engine.step()
    clock.now = CLOSED
    run_until(engine, "window-closed", steps=4)
    assert not ordered(world)


def test_a_window_that_closes_after_the_permit_was_taken_gives_it_back(
    world: World, clock: Clock
) -> None:
    engine = armed(world)
    clock.now = CLOSES - timedelta(seconds=1)
    assert engine.step() is None
    assert memory_of(world).permit == "held"
    clock.now = CLOSES
    run_until(engine, "window-closed", steps=4)
    assert memory_of(world).permit == "none"
    assert not ordered(world)


def test_a_failed_trial_goes_back_whatever_the_window_says(world: World, clock: Clock) -> None:
    sick = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
    world.health = sick
    configure(world)
    engine = armed(world)
    clock.now = OPENS
    run_until(engine, "rebooting", steps=3)
    clock.now = CLOSED
    engine = Engine(node=world.boot())
    assert engine.node.running().version == "2.0.0"
    run_until(engine, "health-pending")
    let_time_pass(world)
    run_until(engine, "rebooting", steps=2)
    assert ordered(world)
    assert world.boot().boot().slot is Slot.A


def test_a_person_waits_for_the_window_too_and_may_say_now(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """With windows that never open the command must refuse whatever the time is."""
    configure(world, WINDOW.replace("Sun", "2020-01-01"), reboot='"manual"')
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "reboot-manual")
    assert main(["--config", str(world.config), "reboot"]) == EXIT_ARMED
    assert "[window-closed]" in capsys.readouterr().err
    assert not ordered(world)
    assert main(["--config", str(world.config), "reboot", "--now"]) == EXIT_DONE
    assert ordered(world)


def test_a_reboot_that_a_person_ordered_comes_when_the_window_opens(
    world: World, clock: Clock
) -> None:
    configure(world, reboot='"manual"')
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    engine = Engine(node=world.node())
    run_until(engine, "reboot-manual")
    assert main(["--config", str(world.config), "reboot"]) == EXIT_ARMED
    run_until(engine, "window-closed", steps=2)
    clock.now = OPENS
    run_until(engine, "rebooting", steps=3)


def test_the_service_uses_a_window_soon_after_it_opens(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks every few seconds, not once at the time that it computed days before."""
    monkeypatch.setattr(daemon, "PAUSE_MAX_SECS", 0.01)
    node = armed(world).node
    rounds = threading.Semaphore(0)

    def told() -> datetime:
        rounds.release()
        return clock.now

    node.clock = told
    thread = threading.Thread(target=Daemon(node).run)
    thread.start()
    try:
        for _ in range(5):
            assert rounds.acquire(timeout=60)
        assert not ordered(world)
        clock.now = OPENS
        for _ in range(2000):
            if ordered(world) or not rounds.acquire(timeout=60):
                break
    finally:
        node.stop.set()
        thread.join()
    assert ordered(world)


@pytest.fixture
def broken_local_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "localtime"
    file.write_text("nonsense")
    monkeypatch.setattr(zones.local_zone, "__defaults__", (file,))


@pytest.mark.usefixtures("broken_local_zone")
def test_a_node_that_cannot_tell_its_zone_keeps_its_system_and_says_why(
    world: World, clock: Clock
) -> None:
    configure(world, WINDOW.replace('timezone = "UTC"\n', ""))
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    clock.now = OPENS
    run_until(Engine(node=world.node()), "window-invalid")
    assert not ordered(world)
