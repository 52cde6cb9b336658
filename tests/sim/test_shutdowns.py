"""A person's shutdown during a trial costs the trial nothing, whatever the loader; a crash does.

Over every loader that we can speak to: what its model does at power-on is what counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot import KEEPERS
from partitions.slots import Slot
from tests.sim.lives import due_now, let_time_pass, live, memory_of
from tests.sim.loaders import quick
from tests.sim.world import World, run_until
from updater import rebooting
from updater.daemon import Daemon
from updater.engine import Engine
from updater.errors import StateError
from updater.lifecycle import State
from updater.machine_model import STOPPING_FILE
from updater.node import Node
from updater.rebooting import TRIES_GIVEN_BACK_MAX, NothingToRebootError


@pytest.fixture(params=quick(KEEPERS, "gptprio", "systemd-boot", "efi"))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=512 * 1024, boot_control=request.param) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def on_trial(world: World) -> Node:
    """Install 2.0.0 and boot it; returns the node before any step of its service."""
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "rebooting")
    node = world.boot()
    assert node.boot().slot is Slot.B
    return node


def noted(node: Node, state: State = State.TRIAL) -> None:
    """Let a process look where the node stands, as the service does first of all."""
    with node.locked() as memory:
        assert memory.state is state


def shut_down(world: World) -> Node:
    """Let systemd end the service in the course of a shutdown, and boot again."""
    node = world.node()
    (world.folder / "run" / STOPPING_FILE).touch()
    node.stop.set()
    Daemon(node).run()
    return world.boot()


def denied(world: World) -> list[str]:
    return [why.code for why in world.node().store.read_denied().values()]


class TestACleanShutdown:
    def test_costs_no_try(self, world: World) -> None:
        noted(on_trial(world))
        node = shut_down(world)
        assert node.boot().slot is Slot.B
        noted(node)
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B].confirmed
        assert node.store.read_denied() == {}

    def test_that_comes_before_the_service_took_a_step_costs_none_either(
        self, world: World
    ) -> None:
        on_trial(world)
        assert memory_of(world).state is State.REBOOTING
        assert shut_down(world).boot().slot is Slot.B

    def test_gives_back_one_of_several_tries(self, world: World) -> None:
        if world.node().loader.max_tries < 2:
            pytest.skip("this loader counts one boot")
        world.write_settings(disk=f'"{world.disk}"\ntries = 2')
        noted(on_trial(world))
        left = world.node().loader.read().slots[Slot.B].tries_left
        noted(shut_down(world))
        assert world.node().loader.read().slots[Slot.B].tries_left == left

    def test_is_not_given_back_for_ever_and_the_end_says_so(self, world: World) -> None:
        noted(on_trial(world))
        for _ in range(TRIES_GIVEN_BACK_MAX):
            node = shut_down(world)
            assert node.boot().slot is Slot.B
            noted(node)
        assert shut_down(world).boot().slot is Slot.A
        live(world)
        assert denied(world) == ["trial-shut-down"]
        failure = memory_of(world).last_failure
        assert failure is not None
        assert f"{TRIES_GIVEN_BACK_MAX} times at no cost before" in failure.sentence

    def test_does_not_wait_for_a_check_that_runs_for_long(self, world: World) -> None:
        """systemd would kill the service, and the try with it."""
        began = world.folder / "began"
        world.health = ["sh", "-c", f"touch {began}; sleep 1000"]
        world.write_settings()
        settings = world.config.read_text().replace("timeout_secs = 2", "timeout_secs = 900")
        world.config.write_text(settings)
        node = on_trial(world)
        thread = threading.Thread(target=Daemon(node).run)
        thread.start()
        while not began.exists():
            assert thread.is_alive()
            time.sleep(0.02)
        (world.folder / "run" / STOPPING_FILE).touch()
        node.stop.set()
        thread.join()
        assert memory_of(world).waiting_code == ""
        assert world.boot().boot().slot is Slot.B

    def test_after_the_loader_was_told_takes_no_confirmation_back(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The floor could not be written on a full disk; somebody makes room and reboots."""
        node = on_trial(world)

        def full(_: int) -> None:
            raise StateError("no space left on device")

        monkeypatch.setattr(node.store, "raise_floor", full)
        engine = Engine(node=node)
        engine.step()  # the look at the health
        with pytest.raises(StateError):
            engine.step()
        assert node.loader.read().slots[Slot.B].confirmed
        assert memory_of(world).state is State.TRIAL
        node = shut_down(world)
        assert node.loader.read().slots[Slot.B].confirmed
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "idle")
        assert node.store.read_floor() == 2

    def test_while_a_check_fails_late_is_no_verdict(self, world: World) -> None:
        """What is stopped by the shutdown fails; that is not the version's fault."""
        world.health = ["false"]
        world.write_settings()
        engine = Engine(node=on_trial(world))
        run_until(engine, "health-pending")
        (world.folder / "run" / STOPPING_FILE).touch()
        let_time_pass(world)
        run_until(engine, "rebooting", steps=1)
        assert memory_of(world).state is State.TRIAL
        assert denied(world) == []
        assert shut_down(world).boot().slot is Slot.B


class TestAnEndWithoutAShutdown:
    def test_costs_the_try_and_is_told_from_a_shutdown(self, world: World) -> None:
        noted(on_trial(world))
        noted(shut_down(world))
        assert world.boot().boot().slot is Slot.A  # power, a watchdog, a panic
        noted(world.node(), State.IDLE)
        failure = memory_of(world).last_failure
        assert failure is not None
        assert failure.code == "reset-once"
        run_until(Engine(node=world.node()), "rebooting")
        noted(world.boot())
        assert world.boot().boot().slot is Slot.A
        live(world)
        assert denied(world) == ["trial-reset"]

    def test_before_the_service_came_up_is_told_from_one_after(self, world: World) -> None:
        on_trial(world)
        assert world.boot().boot().slot is Slot.A
        live(world)
        assert denied(world) == ["trial-boot-failed"]


def test_a_trial_cannot_be_rebooted_by_our_own_command(world: World) -> None:
    """It waits for no permit and no window: `systemctl reboot` is the person's way."""
    node = on_trial(world)
    before = node.loader.read()
    with node.locked() as memory, pytest.raises(NothingToRebootError, match="is trial"):
        rebooting.order_reboot(node, memory)
    assert node.loader.read() == before
    assert memory_of(world).state is State.TRIAL
