"""Trials, and all the ways in which one does not end well: on a real disk file, by real boots.

Time does not pass by itself here: a test makes a boot older. Design, promise 5.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.errors import PayloadSignatureError
from images.release import tuf_payload_path
from partitions.boot.control import SlotState
from partitions.boot.gptprio import GptPriorities
from partitions.slots import Slot
from tests.sim.director import Director
from tests.sim.full_disk import read_only
from tests.sim.lives import due_now, let_time_pass, live, memory_of, new_process
from tests.sim.payload_server import Manners
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, run_until
from updater import checking, rebooting, shown, updating
from updater.agent import Wait
from updater.bus.view import properties
from updater.checking import ArmedAlreadyError, withdraw
from updater.daemon import Daemon
from updater.download import DownloadStoppedError
from updater.engine import REBOOT_PATIENCE, REBOOT_RETRY, Engine
from updater.errors import EXIT_ARMED, IllegalTransitionError, StateError
from updater.install import ReadBackError
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE, STOPPING_FILE
from updater.metrics import render
from updater.metrics_file import take_snapshot
from updater.node import Node
from updater.omaha import Event
from updater.rebooting import (
    NothingToConfirmError,
    NothingToRebootError,
    RollbackRefusedError,
)
from updater.state import NodeState
from updater.steering import flush
from updater.trust.errors import NothingNewerError, VersionDeniedError
from updater.updating import NotConfirmedError
from updater.why import explain

CONFIRMED = SlotState(armed=True, tries_left=0, confirmed=True)
DISARMED = SlotState(armed=False, tries_left=0, confirmed=False)
BOTH = {
    version: [tuf_payload_path(PRODUCT, BOARD, version, "full")] for version in ("2.0.0", "3.0.0")
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=1024 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


@pytest.fixture
def director() -> Iterator[Director]:
    with Director(offer="2.0.0") as made:
        yield made


def sick_of(version: str) -> list[str]:
    """Return a health check that fails in one version."""
    return ["sh", "-c", f"echo {version} is sick; test $BASCULE_VERSION != {version}"]


def install(world: World, version: str = "2.0.0", *, rollback_index: int = 2) -> Node:
    """Release a version and let the node install it, up to the reboot; returns the node."""
    world.release(version, rollback_index=rollback_index)
    due_now(world)
    node = world.node()
    run_until(Engine(node=node), "rebooting")
    assert world.slot_bytes(node.boot().slot.other) == world.image_bytes(version)
    return node


def on_trial(world: World, version: str = "2.0.0", *, rollback_index: int = 2) -> Node:
    """Install a version and boot it; returns the node, before its first step in that boot."""
    slot = world.node().boot().slot
    install(world, version, rollback_index=rollback_index)
    node = world.boot()
    assert node.boot().slot is slot.other
    return node


def armed(
    world: World, version: str = "2.0.0", *, rollback_index: int = 2, **channel: object
) -> Node:
    """Release a version and let a node that reboots by hand only install it."""
    world.write_settings(reboot='"manual"')
    world.release(version, rollback_index=rollback_index, **channel)
    due_now(world)
    node = world.node()
    run_until(Engine(node=node), "reboot-manual")
    return node


def memory(node: Node) -> NodeState:
    with node.locked() as found:
        return found


class TestAnUnhealthyTrial:
    def test_goes_back_by_itself(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        run_until(engine, "health-pending")
        assert memory_of(world).state is State.TRIAL
        let_time_pass(world)
        run_until(engine, "rebooting", steps=2)
        loader = engine.node.loader.read()
        assert (loader.target, loader.slots[Slot.B]) == (Slot.A, DISARMED)

        node = world.boot()
        assert node.boot().slot is Slot.A
        found = memory(node)
        assert (found.state, found.update) == (State.IDLE, None)
        assert found.last_failure is not None
        assert found.last_failure.code == "trial-unhealthy"
        assert "check service ended with status 1: 2.0.0 is sick" in found.last_failure.sentence
        assert node.store.read_floor() == 0

    def test_is_remembered_and_the_version_not_tried_again(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        on_trial(world)
        assert live(world)[-1] == "idle"
        sent = world.payloads.sent
        due_now(world)
        with pytest.raises(VersionDeniedError):
            Engine(node=world.node()).step()
        assert memory_of(world).last_check_code == "version-denied"
        assert world.payloads.sent == sent
        assert world.node().loader.read().slots[Slot.B] == DISARMED

    def test_does_not_keep_a_newer_version_away(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        on_trial(world)
        live(world)
        on_trial(world, "3.0.0", rollback_index=3)
        live(world)
        node = world.node()
        assert node.running().version == "3.0.0"
        assert node.loader.read().slots[Slot.B] == CONFIRMED
        assert node.store.read_floor() == 3

    def test_is_tried_again_when_a_person_insists(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        on_trial(world)
        live(world)
        world.health = ["true"]
        world.write_settings()
        node = world.node()
        with node.locked() as found:
            found, release = checking.check(node, found, by_person=True, forced=True)
            updating.install(node, found, release, by_person=True)
        run_until(Engine(node=node), "rebooting")
        node = world.boot()
        run_until(Engine(node=node), "idle")
        assert node.running().version == "2.0.0"
        assert node.store.read_denied() == {}

    def test_is_reported_once_with_its_code_and_its_version(
        self, world: World, director: Director
    ) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings(poll_interval_secs=f"1\n{director.setting}")
        on_trial(world)
        live(world)
        node = world.node()
        assert node.steering is not None
        flush(node.store, node.steering, checking.present(node, memory(node)))
        failures = [event for event in director.events if event.result == 0]
        assert [
            (event.type, event.bascule_code, event.next_version, event.error_code)
            for event in failures
        ] == [(3, "trial-unhealthy", "2.0.0", 44)]
        assert "check service ended with status 1" in failures[0].bascule_sentence
        assert not any((event.type, event.result) == (3, 2) for event in director.events)

    def test_of_an_image_that_does_not_say_what_it_is_goes_back_too(self, world: World) -> None:
        """Such an image can neither be checked nor named, but it must not stay."""
        node = on_trial(world)
        region = node.regions(Slot.B)["usr"]
        with world.disk.open("r+b") as file:
            file.seek(region.offset)
            file.write(bytes(64 * 1024))  # its superblock
        engine = Engine(node=world.node())
        run_until(engine, "health-pending")
        let_time_pass(world)
        run_until(engine, "rebooting", steps=2)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE
        assert list(node.store.read_denied()) == ["2.0.0"]

    def test_stays_when_there_is_nothing_to_go_back_to(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        memory(engine.node)
        somebody = GptPriorities(world.disk, engine.node.layout)
        somebody.arm(Slot.B, tries=1)
        somebody.disarm(Slot.A)
        let_time_pass(world)
        run_until(engine, "health-pending")
        assert memory_of(world).state is State.TRIAL
        assert engine.node.store.read_denied() == {}

    def test_whose_reboot_command_fails_tries_again_and_does_not_become_armed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from updater.machine import RebootError

        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        run_until(engine, "health-pending")
        let_time_pass(world)

        def broken() -> None:
            raise RebootError("systemctl ended with status 1")

        monkeypatch.setattr(engine.node.machine, "reboot", broken)
        engine.step()
        for _ in range(2):
            with pytest.raises(RebootError):
                engine.step()
            assert memory_of(world).state is State.REBOOTING
        monkeypatch.undo()
        run_until(engine, "rebooting", steps=1)
        assert (world.folder / "run" / REBOOT_FILE).exists()


class TestATrialThatIsLate:
    def test_is_looked_at_before_it_is_judged(self, world: World) -> None:
        """The boot took long, or the service was restarted: a good system stays."""
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        run_until(engine, "idle")
        assert engine.node.loader.read().slots[Slot.B] == CONFIRMED

    def test_goes_back_when_it_is_not_healthy_then(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        run_until(engine, "rebooting", steps=3)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE
        assert [why.code for why in node.store.read_denied().values()] == ["trial-unhealthy"]

    def test_is_not_too_late_for_a_person(self, world: World) -> None:
        node = on_trial(world)
        let_time_pass(world)
        with node.locked() as found:
            rebooting.confirm(node, found)
        assert node.loader.read().slots[Slot.B] == CONFIRMED
        assert memory_of(world).state is State.IDLE


class TestASteadyTime:
    """A trial must stay healthy for so long; here its looks find what a marker says."""

    @pytest.fixture
    def steady(self, world: World) -> Engine:
        """A node on trial in 2.0.0 that must be healthy for a minute, with an hour to show it."""
        world.health = ["test", "-e", str(world.folder / "well")]
        world.write_settings(deadline_secs="3600\nsteady_secs = 60")
        return Engine(node=on_trial(world))

    def look(self, world: World, engine: Engine, *, well: bool, after_secs: float) -> State:
        """Let time pass and take steps until the engine waits; returns where the node stands."""
        (world.folder / "well").touch() if well else (world.folder / "well").unlink(missing_ok=True)
        let_time_pass(world, after_secs)
        while not isinstance(engine.step(), Wait):
            pass
        return memory_of(world).state

    def test_is_waited_for(self, world: World, steady: Engine) -> None:
        assert self.look(world, steady, well=True, after_secs=10) is State.TRIAL
        assert memory_of(world).waiting_code == "health-steady"
        assert self.look(world, steady, well=True, after_secs=55) is State.TRIAL
        assert not steady.node.loader.read().slots[Slot.B].confirmed
        assert self.look(world, steady, well=True, after_secs=6) is State.IDLE
        assert steady.node.loader.read().slots[Slot.B] == CONFIRMED
        assert memory_of(world).waiting_code == ""

    def test_begins_anew_with_each_look_that_fails(self, world: World, steady: Engine) -> None:
        assert self.look(world, steady, well=True, after_secs=10) is State.TRIAL
        assert self.look(world, steady, well=False, after_secs=59) is State.TRIAL
        assert memory_of(world).waiting_code == "health-failing"
        assert self.look(world, steady, well=True, after_secs=5) is State.TRIAL
        assert self.look(world, steady, well=True, after_secs=59) is State.TRIAL
        assert self.look(world, steady, well=True, after_secs=1) is State.IDLE

    def test_begins_anew_with_each_process(
        self, world: World, steady: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.look(world, steady, well=True, after_secs=10) is State.TRIAL
        engine = Engine(node=new_process(world, monkeypatch))
        assert self.look(world, engine, well=True, after_secs=59) is State.TRIAL
        assert self.look(world, engine, well=True, after_secs=59) is State.TRIAL
        assert self.look(world, engine, well=True, after_secs=1) is State.IDLE

    def test_under_way_at_the_deadline_may_end_but_not_fail(
        self, world: World, steady: Engine
    ) -> None:
        assert self.look(world, steady, well=True, after_secs=3590) is State.TRIAL
        assert self.look(world, steady, well=True, after_secs=40) is State.TRIAL
        assert self.look(world, steady, well=True, after_secs=20) is State.IDLE
        assert steady.node.loader.read().slots[Slot.B] == CONFIRMED

    def test_that_fails_after_the_deadline_ends_the_trial(
        self, world: World, steady: Engine
    ) -> None:
        assert self.look(world, steady, well=True, after_secs=3590) is State.TRIAL
        assert self.look(world, steady, well=False, after_secs=40) is State.REBOOTING
        assert world.boot().boot().slot is Slot.A

    def test_is_not_waited_for_by_a_person(self, world: World, steady: Engine) -> None:
        assert self.look(world, steady, well=True, after_secs=10) is State.TRIAL
        with steady.node.locked() as found:
            rebooting.confirm(steady.node, found)
        assert steady.node.loader.read().slots[Slot.B] == CONFIRMED


class TestABootOfAHalfWrittenSlot:
    """Somebody's boot menu, or the firmware's own order, chooses what nobody armed."""

    @pytest.fixture(params=["power", "read-back"])
    def half_written(
        self, request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> World:
        """A node whose install of 2.0.0 ended before the slot was verified."""
        ends = {"power": DownloadStoppedError, "read-back": ReadBackError}[request.param]

        def ended(*_: object, **__: object) -> None:
            raise ends("before the slot was verified")

        world.release("2.0.0", rollback_index=2)
        due_now(world)
        with monkeypatch.context() as patched:
            patched.setattr(updating, "verify_slot", ended)
            with pytest.raises(ends):
                Engine(node=world.node()).step()
        return world

    def choose(self, world: World) -> Node:
        GptPriorities(world.disk, world.node().layout).arm(Slot.B, tries=1)
        node = world.boot()
        assert node.boot().slot is Slot.B
        return node

    def test_goes_back_at_once_and_blames_no_version(self, half_written: World) -> None:
        world = half_written
        engine = Engine(node=self.choose(world))
        run_until(engine, "rebooting", steps=2)
        assert engine.node.loader.read().slots[Slot.B] == DISARMED
        node = world.boot()
        assert node.boot().slot is Slot.A
        found = memory(node)
        assert (found.state, node.store.read_denied()) == (State.IDLE, {})
        assert found.last_failure is not None
        assert found.last_failure.code == "slot-unverified"
        with node.locked() as found, pytest.raises(RollbackRefusedError):
            rebooting.roll_back(node, found)
        due_now(world)
        live(world)
        assert world.node().running().version == "2.0.0"
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_that_comes_again_stays_and_is_never_confirmed_by_itself(
        self, half_written: World
    ) -> None:
        world = half_written
        run_until(Engine(node=self.choose(world)), "rebooting", steps=2)
        assert memory(world.boot()).state is State.IDLE
        engine = Engine(node=self.choose(world))
        for _ in range(2):
            run_until(engine, "slot-unverified", steps=2)
            let_time_pass(world)
        assert memory_of(world).state is State.TRIAL
        assert not engine.node.loader.read().slots[Slot.B].confirmed
        status = "\n".join(shown.status_lines(shown.status(engine.node)))
        assert "was never verified" in status
        with engine.node.locked() as found:
            rebooting.confirm(engine.node, found)
        assert memory_of(world).unverified is None
        assert engine.node.loader.read().slots[Slot.B] == CONFIRMED

    def test_stays_where_there_is_nothing_to_go_back_to(self, half_written: World) -> None:
        world = half_written
        node = self.choose(world)
        somebody = GptPriorities(world.disk, node.layout)
        somebody.arm(Slot.B, tries=1)
        somebody.disarm(Slot.A)
        run_until(Engine(node=node), "slot-unverified", steps=2)
        assert memory_of(world).state is State.TRIAL

    def test_is_marked_though_the_loader_calls_it_confirmed(self, half_written: World) -> None:
        world = half_written
        GptPriorities(world.disk, world.node().layout).confirm(Slot.B)
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "rebooting", steps=2)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE


class TestATrialThatNobodyJudged:
    def test_is_taken_for_failed_when_the_loader_went_back(self, world: World) -> None:
        """Power was cut or a watchdog bit before the node came up at all."""
        on_trial(world)
        node = world.boot()
        assert node.boot().slot is Slot.A
        found = memory(node)
        assert (found.state, found.update) == (State.IDLE, None)
        assert [why.code for why in node.store.read_denied().values()] == ["trial-boot-failed"]

    def test_that_lost_its_power_before_it_came_up_goes_on_where_a_try_is_left(
        self, world: World
    ) -> None:
        """With one try it is the test above: nothing tells it from a panic."""
        world.write_settings(boot_control='"gptprio"', disk=f'"{world.disk}"\ntries = 2')
        on_trial(world)
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B] == CONFIRMED
        assert node.store.read_denied() == {}

    def test_is_taken_for_failed_when_it_was_reset_in_between_for_the_second_time(
        self, world: World
    ) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        self.reset(world)
        assert memory(world.boot()).state is State.IDLE
        run_until(Engine(node=world.node()), "rebooting")  # it is tried once more by itself
        assert world.boot().boot().slot is Slot.B
        run_until(Engine(node=world.node()), "health-pending")
        node = world.boot()
        assert memory(node).state is State.IDLE
        assert [why.code for why in node.store.read_denied().values()] == ["trial-reset"]
        live(world)
        sent = world.payloads.sent
        for _ in range(2):
            due_now(world)
            with pytest.raises(VersionDeniedError):
                Engine(node=world.node()).step()
        assert world.payloads.sent == sent

    def reset(self, world: World) -> None:
        """Let 2.0.0 come up on trial, and the power fail before it is judged."""
        with on_trial(world).locked() as found:
            assert found.state is State.TRIAL

    def test_is_tried_once_more_when_its_power_failed(
        self, world: World, director: Director
    ) -> None:
        """A whole site may lose its power during a rollout."""
        world.write_settings(poll_interval_secs=f"3600\n{director.setting}")
        self.reset(world)
        node = world.boot()
        assert node.boot().slot is Slot.A
        found = memory(node)
        assert (found.state, found.reset_versions) == (State.IDLE, ("2.0.0",))
        assert node.store.read_denied() == {}
        status = shown.status(node)
        assert status["last_failure"]["code"] == "reset-once"
        said = "\n".join(shown.status_lines(status))
        assert "ended without an orderly shutdown before it was judged, once so far" in said
        assert "refuses" not in said
        assert node.store.history()[-1]["code"] == "reset-once"
        assert node.steering is not None
        flush(node.store, node.steering, checking.present(node, found))
        (failure,) = [event for event in director.events if event.result == 0]
        assert (failure.bascule_code, failure.next_version) == ("reset-once", "2.0.0")
        assert failure.error_code != 44
        live(world)
        node = world.node()
        assert node.running().version == "2.0.0"
        assert memory_of(world).reset_versions == ()

    def test_is_told_with_its_cause_to_people_metrics_and_the_server(
        self, world: World, director: Director
    ) -> None:
        world.write_settings(poll_interval_secs=f"1\n{director.setting}")
        node = on_trial(world)
        node.keep(memory(node), reset_versions=("2.0.0",))  # it is not the first time
        node = world.boot()
        memory(node)
        said = "version 2.0.0 in slot b came up and ended without an orderly shutdown"
        status = shown.status(node)
        assert status["last_failure"]["code"] == "trial-reset"
        lines = list(shown.status_lines(status))
        at = next(n for n, line in enumerate(lines) if line.startswith(f"failure   {said}"))
        assert lines[at].endswith("[trial-reset]")
        assert "look at that boot's console" in lines[at + 1]
        assert any(line.startswith(f"refuses   2.0.0: {said}") for line in lines)
        rows = explain(node)["conditions"]
        assert any(row["code"] == "trial-reset" and said in row["sentence"] for row in rows)
        metrics = render(take_snapshot(node, memory_of(world)))
        assert 'bascule_denied_info{version="2.0.0",code="trial-reset"} 1' in metrics
        on_bus = properties(status, engine_version="1")
        assert on_bus["LastFailureCode"] == "trial-reset"
        assert node.steering is not None
        flush(node.store, node.steering, checking.present(node, memory(node)))
        (failure,) = [event for event in director.events if event.result == 0]
        assert (failure.bascule_code, failure.error_code) == ("trial-reset", 44)
        assert failure.bascule_sentence.startswith(said)

    def test_has_as_many_boots_as_the_settings_give(self, world: World) -> None:
        world.write_settings(boot_control='"gptprio"', disk=f'"{world.disk}"\ntries = 3')
        node = on_trial(world)
        for tries_used in (1, 2, 3):
            assert node.boot().slot is Slot.B
            update = memory(node).update
            assert update is not None
            assert update.tries_used == tries_used
            node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE
        assert "2.0.0" in node.store.read_denied()

    def test_does_not_touch_the_floor(self, world: World) -> None:
        on_trial(world)
        node = world.boot()
        memory(node)
        assert node.store.read_floor() == 0


class TestALostStateFolder:
    def test_during_a_trial_the_trial_goes_on(self, world: World) -> None:
        node = on_trial(world)
        shutil.rmtree(world.folder / "state")
        found = memory(node)
        assert (found.state, found.update, found.permit) == (State.TRIAL, None, "unknown")
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B] == CONFIRMED
        assert node.store.read_floor() == 2

    def test_the_loader_still_ends_it(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        shutil.rmtree(world.folder / "state")
        run_until(engine, "health-pending")
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE

    def test_a_second_boot_of_it_is_a_trial_too(self, world: World) -> None:
        world.write_settings(disk=f'"{world.disk}"\ntries = 3')
        world.health = sick_of("2.0.0")
        world.write_settings(disk=f'"{world.disk}"\ntries = 3')
        engine = Engine(node=on_trial(world))
        shutil.rmtree(world.folder / "state")
        run_until(engine, "health-pending")
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.TRIAL

    def test_when_idle_nothing_happens(self, world: World) -> None:
        shutil.rmtree(world.folder / "state")
        node = world.boot()
        run_until(Engine(node=node), "idle")
        assert node.boot().slot is Slot.A
        assert node.running().version == "1.0.0"

    def test_while_armed_the_reboot_by_hand_is_a_trial(self, world: World) -> None:
        armed(world)
        shutil.rmtree(world.folder / "state")
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.TRIAL
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B] == CONFIRMED

    def test_a_lost_floor_is_no_way_below_what_runs(self, world: World) -> None:
        on_trial(world)
        live(world)
        (world.folder / "state" / "floor.json").unlink()
        node = world.node()
        with node.locked() as found, pytest.raises(RollbackRefusedError, match="index 1"):
            rebooting.roll_back(node, found)


class TestAStateFolderThatFails:
    """A trial ends whatever fails: the new system may be what broke the disk."""

    def test_does_not_keep_a_sick_system(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        with read_only(world.folder / "state"):
            engine.step()  # the look
            with pytest.raises(StateError):
                engine.step()
        assert engine.last_verdict is not None
        assert "2.0.0 is sick" in engine.last_verdict.sentence
        assert (world.folder / "run" / REBOOT_FILE).exists()
        assert engine.node.loader.read().slots[Slot.B] == DISARMED
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE
        (why,) = node.store.read_denied().values()
        assert why.code == "trial-boot-failed"
        assert "could not write anything" in why.sentence

    def test_does_not_throw_out_a_good_system(self, world: World) -> None:
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        with read_only(world.folder / "state"):
            engine.step()  # the look
            for _ in range(3):
                with pytest.raises(StateError):
                    engine.step()
        assert engine.node.loader.read().slots[Slot.B] == CONFIRMED
        assert not (world.folder / "run" / REBOOT_FILE).exists()
        run_until(engine, "idle")
        assert engine.node.store.read_floor() == 2

    def test_stops_an_idle_node_with_its_code(self, world: World) -> None:
        due_now(world)
        with read_only(world.folder / "state"), pytest.raises(StateError) as caught:
            Engine(node=world.node()).step()
        assert caught.value.code == "state-folder"


class TestAnOrderlyShutdown:
    """Somebody else's, during a trial: no failed boot (design, section 11)."""

    def shut_down(self, world: World) -> Node:
        """Let systemd end the service, and boot again."""
        node = world.node()
        (world.folder / "run" / STOPPING_FILE).touch()
        node.stop.set()
        Daemon(node).run()
        return world.boot()

    def test_that_goes_back_gives_nothing_back(self, world: World) -> None:
        world.health = sick_of("2.0.0")
        world.write_settings()
        engine = Engine(node=on_trial(world))
        let_time_pass(world)
        run_until(engine, "rebooting", steps=3)
        node = self.shut_down(world)
        assert node.boot().slot is Slot.A

    def test_outside_of_a_trial_changes_nothing(self, world: World) -> None:
        armed(world)
        before = world.node().loader.read()
        (world.folder / "run" / STOPPING_FILE).touch()
        node = world.node()
        node.stop.set()
        Daemon(node).run()
        assert node.loader.read() == before


class TestARebootThatDoesNotCome:
    def test_is_given_up_and_the_permit_returned_until_it_is_ordered_again(
        self, world: World
    ) -> None:
        engine = Engine(node=install(world))
        run_until(engine, "rebooting")
        let_time_pass(world, REBOOT_PATIENCE.total_seconds())
        run_until(engine, "reboot-overdue")
        found = memory_of(world)
        assert (found.state, found.permit) == (State.ARMED, "none")
        assert found.last_failure is not None
        assert found.last_failure.code == "reboot-overdue"
        let_time_pass(world, REBOOT_RETRY.total_seconds())
        run_until(engine, "rebooting")
        assert memory_of(world).permit == "held"
        assert world.boot().boot().slot is Slot.B


class TestARolloutThatTheServerStopped:
    @pytest.fixture
    def steered(self, world: World, director: Director) -> World:
        world.write_settings(poll_interval_secs=f"1\n{director.setting}")
        return world

    def test_keeps_an_armed_node_from_booting_it(self, steered: World, director: Director) -> None:
        steered.write_settings(poll_interval_secs=f"1\n{director.setting}", reboot='"manual"')
        steered.release("2.0.0", rollback_index=2)
        due_now(steered)
        run_until(Engine(node=steered.node()), "reboot-manual")
        director.offer, director.reason = "", "rollout-stopped"
        steered.write_settings(poll_interval_secs=f"1\n{director.setting}")
        due_now(steered)
        run_until(Engine(node=steered.node()), "rollout-stopped")
        assert memory_of(steered).state is State.ARMED
        director.offer = "2.0.0"
        due_now(steered)
        run_until(Engine(node=steered.node()), "rebooting")

    def test_does_not_keep_a_person_from_rolling_back(
        self, steered: World, director: Director
    ) -> None:
        """It is the very moment to do so; and an armed rollback makes no checks."""
        on_trial(steered, rollback_index=1)
        live(steered)
        director.offer, director.reason = "", "rollout-stopped"
        due_now(steered)
        run_until(Engine(node=steered.node()), "idle")
        assert memory_of(steered).last_check_code == "rollout-stopped"
        node = steered.node()
        with node.locked() as found:
            rebooting.roll_back(node, found)
        run_until(Engine(node=node), "rebooting")
        assert steered.boot().boot().slot is Slot.A


class TestAWithdrawnRelease:
    def test_makes_no_difference_to_a_rollback(self, world: World) -> None:
        on_trial(world, rollback_index=1)
        world.write_settings(reboot='"manual"')
        live(world)
        node = world.node()
        with node.locked() as found:
            rebooting.roll_back(node, found)
        world.repository.promote("2.0.0", withdrawn=("2.0.0",))
        due_now(world)
        run_until(Engine(node=node), "reboot-manual")
        assert node.loader.read().target is Slot.A


class TestThePermit:
    def test_is_kept_until_the_new_system_is_confirmed(self, world: World) -> None:
        marker = world.folder / "healthy"
        world.health = ["test", "-e", str(marker)]
        world.write_settings()
        engine = Engine(node=on_trial(world))
        run_until(engine, "health-pending")
        assert memory_of(world).permit == "held"
        marker.touch()
        engine.last_examined = None
        run_until(engine, "idle")
        assert memory_of(world).permit == "none"

    def test_is_kept_until_the_old_system_is_healthy(self, world: World) -> None:
        marker = world.folder / "healthy"
        world.health = ["test", "-e", str(marker)]
        world.write_settings(poll_interval_secs="3600")
        on_trial(world)
        node = world.boot()
        assert node.boot().slot is Slot.A
        engine = Engine(node=node)
        run_until(engine, "health-pending")
        found = memory_of(world)
        assert (found.state, found.permit) == (State.IDLE, "held")
        marker.touch()
        engine.last_examined = None
        run_until(engine, "idle")
        assert memory_of(world).permit == "none"

    def test_that_cannot_be_used_for_now_is_returned(self, world: World) -> None:
        """The reboots were switched to manual while one was held: others may need it."""
        node = armed(world)
        node.keep(memory_of(world), permit="held")
        run_until(Engine(node=node), "reboot-manual")
        found = memory_of(world)
        assert (found.state, found.permit) == (State.ARMED, "none")


class TestARebootByHand:
    def test_while_armed_begins_the_trial(self, world: World) -> None:
        armed(world)
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "idle")
        assert node.running().version == "2.0.0"
        assert node.loader.read().slots[Slot.B] == CONFIRMED

    def test_while_installing_goes_on_with_it(self, world: World) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=False)
        assert memory_of(world).state is State.INSTALLING
        node = world.boot()
        assert node.boot().slot is Slot.A
        run_until(Engine(node=node), "reboot-manual")
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_is_ordered_by_a_person_where_reboots_are_manual(self, world: World) -> None:
        node = armed(world)
        with node.locked() as found:
            rebooting.order_reboot(node, found)
        run_until(Engine(node=node), "rebooting")
        assert world.boot().boot().slot is Slot.B

    def test_needs_something_armed(self, world: World) -> None:
        node = world.node()
        with node.locked() as found, pytest.raises(NothingToRebootError, match="is idle"):
            rebooting.order_reboot(node, found)


class TestRollingBack:
    def on_2(self, world: World) -> Node:
        """Return a node that runs 2.0.0 in slot B, of the same rollback index as 1.0.0 in A."""
        on_trial(world, rollback_index=1)
        world.write_settings(reboot='"manual"')
        live(world)
        node = world.node()
        assert node.running().version == "2.0.0"
        return node

    def roll_back(self, node: Node) -> NodeState:
        with node.locked() as found:
            return rebooting.roll_back(node, found)

    def test_starts_the_other_slot_on_trial_and_refuses_the_version_left(
        self, world: World
    ) -> None:
        node = self.on_2(world)
        found = self.roll_back(node)
        assert found.state is State.ARMED
        assert node.loader.read().target is Slot.A
        node = world.boot()
        assert memory(node).state is State.TRIAL
        run_until(Engine(node=node), "idle")
        assert node.running().version == "1.0.0"
        assert node.loader.read().slots[Slot.A] == CONFIRMED
        assert [why.code for why in node.store.read_denied().values()] == ["rolled-back"]
        due_now(world)
        with pytest.raises(VersionDeniedError):
            Engine(node=world.node()).step()

    def test_is_a_trial_that_may_fail_too(self, world: World) -> None:
        world.health = sick_of("1.0.0")
        node = self.on_2(world)
        world.write_settings(reboot='"manual"')
        self.roll_back(node)
        engine = Engine(node=world.boot())
        run_until(engine, "health-pending")
        let_time_pass(world)
        run_until(engine, "rebooting", steps=2)
        node = world.boot()
        assert node.boot().slot is Slot.B
        assert memory(node).state is State.IDLE

    def test_can_be_taken_back_and_ordered_again(self, world: World) -> None:
        node = self.on_2(world)
        before = node.loader.read()
        self.roll_back(node)
        found = self.roll_back(node)
        assert (found.state, found.update) == (State.IDLE, None)
        after = node.loader.read()
        assert (after.target, after.slots) == (before.target, before.slots)
        assert node.store.read_denied() == {}
        assert self.roll_back(node).state is State.ARMED

    def test_is_not_overtaken_by_a_check(self, world: World) -> None:
        """A person's order comes before what a channel says meanwhile."""
        node = self.on_2(world)
        self.roll_back(node)
        world.release("3.0.0", rollback_index=3)
        due_now(world)
        run_until(Engine(node=node), "reboot-manual")
        found = memory_of(world)
        assert found.update is not None
        assert (found.update.version, found.update.rollback) == ("1.0.0", True)

    def test_below_the_floor_is_refused(self, world: World) -> None:
        on_trial(world, rollback_index=2)
        live(world)
        node = world.node()
        before = node.loader.read()
        with pytest.raises(RollbackRefusedError, match="rollback index 1, this node accepts 2"):
            self.roll_back(node)
        assert node.loader.read() == before
        assert memory_of(world).state is State.IDLE
        assert node.store.read_denied() == {}

    def test_to_a_slot_that_never_held_is_refused(self, world: World) -> None:
        node = world.node()
        with pytest.raises(RollbackRefusedError, match="slot b holds no system that was confirmed"):
            self.roll_back(node)
        assert node.loader.read().target is Slot.A

    def test_to_a_slot_that_was_half_written_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though the loader calls it confirmed: firmware may put every entry into its order."""
        node = self.on_2(world)
        world.release("3.0.0", rollback_index=2)
        due_now(world)

        def lost(*_: object, **__: object) -> None:
            raise ReadBackError("the disk loses what it is given")

        monkeypatch.setattr(updating, "verify_slot", lost)
        with pytest.raises(ReadBackError):
            Engine(node=node).step()
        somebody = GptPriorities(world.disk, node.layout)
        somebody.confirm(Slot.A)
        somebody.confirm(Slot.B)
        for again in (node, new_process(world, monkeypatch), world.boot()):
            before = again.loader.read()
            with pytest.raises(RollbackRefusedError, match="slot a was begun and not verified"):
                self.roll_back(again)
            assert (again.loader.read(), memory_of(world).state) == (before, State.IDLE)

    def test_to_a_slot_that_was_written_whole_after_half_of_it_is_none_of_that(
        self, world: World
    ) -> None:
        node = self.on_2(world)
        data = world.release("3.0.0", rollback_index=1)
        world.payloads.manners = Manners(flip_at=len(data) - 20)
        due_now(world)
        with pytest.raises(PayloadSignatureError):
            Engine(node=node).step()
        assert memory_of(world).unverified is not None
        world.payloads.manners = Manners()
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
        assert memory_of(world).unverified is None
        world.boot()
        live(world)
        assert world.node().running().version == "3.0.0"
        assert self.roll_back(world.node()).state is State.ARMED

    def test_is_refused_during_a_trial(self, world: World) -> None:
        node = on_trial(world)
        with pytest.raises(IllegalTransitionError):
            self.roll_back(node)
        assert memory_of(world).state is State.TRIAL


class TestTakingBack:
    def take_back(self, node: Node) -> NodeState:
        with node.locked() as found:
            return rebooting.roll_back(node, found)

    def test_an_armed_update_leaves_what_runs(self, world: World) -> None:
        node = armed(world)
        found = self.take_back(node)
        assert (found.state, found.update) == (State.IDLE, None)
        loader = node.loader.read()
        assert (loader.target, loader.slots[Slot.B]) == (Slot.A, DISARMED)
        node = world.boot()
        assert node.boot().slot is Slot.A
        assert memory(node).state is State.IDLE

    def test_it_is_refused_from_then_on(self, world: World) -> None:
        node = armed(world)
        self.take_back(node)
        assert [why.code for why in node.store.read_denied().values()] == ["rolled-back"]
        due_now(world)
        with pytest.raises(VersionDeniedError):
            Engine(node=node).step()

    def test_an_update_being_installed_ends_it(self, world: World) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=True)
        found = self.take_back(node)
        assert found.state is State.IDLE
        assert node.loader.read().slots[Slot.B] == DISARMED
        assert node.store.read_journal() is None

    def test_no_failed_trial_is_made_of_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Power is cut after the slot was disarmed, before that could be noted."""
        node = armed(world)
        with node.locked() as found:
            withdraw(node, found)
            node.loader.disarm(Slot.B)
        for again in (new_process(world, monkeypatch), world.boot()):
            assert memory(again).state is State.IDLE
            assert again.store.read_denied() == {}


class TestANewerRelease:
    def test_replaces_an_armed_one(self, world: World) -> None:
        armed(world)
        node = armed(world, "3.0.0", rollback_index=3, allowed=BOTH)
        found = memory_of(world)
        assert found.state is State.ARMED
        assert found.update is not None
        assert found.update.version == "3.0.0"
        assert world.slot_bytes(Slot.B) == world.image_bytes("3.0.0")
        assert node.loader.read().target is Slot.B
        assert node.store.read_denied() == {}

    def test_replaces_one_that_is_being_installed(self, world: World) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=False)
        armed(world, "3.0.0", rollback_index=3, allowed=BOTH)
        assert world.slot_bytes(Slot.B) == world.image_bytes("3.0.0")

    def test_that_cannot_be_fetched_leaves_the_slot_disarmed(self, world: World) -> None:
        """Neither half of it may boot; what runs stays."""
        armed(world)
        world.release("3.0.0", rollback_index=3, allowed=BOTH)
        world.payloads.files.clear()
        due_now(world)
        engine = Engine(node=world.node())
        codes = []
        for _ in range(3):
            try:
                wait = engine.step()
            except Exception as error:  # noqa: BLE001  # any refusal will do
                codes.append(getattr(error, "code", ""))
            else:
                codes.append(getattr(wait, "code", ""))
        assert "download-failed" in codes
        loader = engine.node.loader.read()
        assert (loader.target, loader.slots[Slot.B]) == (Slot.A, DISARMED)
        assert memory_of(world).state is State.INSTALLING

    def test_the_same_again_is_armed_already(self, world: World) -> None:
        node = armed(world)
        with node.locked() as found, pytest.raises(ArmedAlreadyError) as caught:
            checking.check(node, found, by_person=True)
        assert caught.value.exit_status == EXIT_ARMED
        assert node.loader.read().target is Slot.B
        assert memory_of(world).state is State.ARMED


class TestAVersionThatAPersonChose:
    def test_stays_chosen_when_the_install_is_resumed(self, world: World) -> None:
        world.write_settings(reboot='"manual"')
        path = world.release("2.0.0", rollback_index=2)
        assert path
        world.release("3.0.0", rollback_index=3, allowed=BOTH)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=True, version="2.0.0")
        run_until(Engine(node=node), "reboot-manual")
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")


class TestWithoutAConfirmedSlot:
    def test_nothing_is_installed(self, world: World) -> None:
        """The passive slot is the only way back: promise 3."""
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            found, release = checking.check(node, found, by_person=True)
            node.loader.arm(Slot.A, tries=1)
            before = world.slot_bytes(Slot.B)
            with pytest.raises(NotConfirmedError):
                updating.install(node, found, release, by_person=True)
        assert world.slot_bytes(Slot.B) == before
        assert world.payloads.sent == 0
        assert memory_of(world).state is State.IDLE

    def test_a_trial_does_not_even_check(self, world: World) -> None:
        node = on_trial(world)
        world.release("3.0.0", rollback_index=3)
        with node.locked() as found, pytest.raises(IllegalTransitionError):
            checking.check(node, found, by_person=True, forced=True)
        assert node.loader.read().slots[Slot.A] == CONFIRMED

    def test_a_person_confirms_only_a_trial(self, world: World) -> None:
        node = world.node()
        with node.locked() as found, pytest.raises(NothingToConfirmError):
            rebooting.confirm(node, found)


class TestAFailedInstall:
    def test_of_a_slot_that_was_armed_without_being_noted_leaves_it_disarmed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed between arming and noting it; then the release is withdrawn."""
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        node = world.node()
        with node.locked() as found:
            checking.check(node, found, by_person=False)
            node.loader.arm(Slot.B, tries=1)
        world.repository.promote("2.0.0", withdrawn=("2.0.0",))
        node = new_process(world, monkeypatch)
        with pytest.raises(Exception, match="withdrawn"):
            Engine(node=node).step()
        assert memory_of(world).state is State.IDLE
        loader = node.loader.read()
        assert (loader.target, loader.slots[Slot.B]) == (Slot.A, DISARMED)

    def test_once_it_wrote_leaves_the_slot_unable_to_boot(self, world: World) -> None:
        """Promise 3: what was whole and confirmed there is neither from the first byte on."""
        on_trial(world, rollback_index=1)
        live(world)
        node = world.node()
        assert node.loader.read().slots[Slot.A] == CONFIRMED
        data = world.release("3.0.0", rollback_index=3)
        world.payloads.manners = Manners(flip_at=len(data) - 20)  # of the signature at the end
        due_now(world)
        with pytest.raises(PayloadSignatureError):
            Engine(node=node).step()
        assert world.slot_bytes(Slot.A) != world.image_bytes("1.0.0")
        loader = node.loader.read()
        assert (loader.target, loader.slots[Slot.A]) == (Slot.B, DISARMED)
        assert world.boot().boot().slot is Slot.B

    def test_before_the_first_byte_keeps_the_way_back(self, world: World) -> None:
        """What does not fit must not cost the slot that a person could roll back to."""
        on_trial(world, rollback_index=1)
        live(world)
        node = world.node()
        assert node.loader.read().slots[Slot.A] == CONFIRMED
        world.release("3.0.0", rollback_index=3)
        targets = world.repository.roles["releases"].targets
        for path, target in targets.items():
            if "3.0.0" in path:
                target.unrecognized_fields["custom"]["partitions"][0]["size"] = 1 << 40
        world.repository.promote("3.0.0")
        due_now(world)
        with pytest.raises(Exception, match="partition USR-A holds"):
            Engine(node=node).step()
        assert node.loader.read().slots[Slot.A] == CONFIRMED
        assert world.slot_bytes(Slot.A) == world.image_bytes("1.0.0")


def test_success_is_reported_with_both_versions(world: World, director: Director) -> None:
    world.write_settings(poll_interval_secs=f"1\n{director.setting}")
    on_trial(world)
    live(world)
    node = world.node()
    assert node.steering is not None
    flush(node.store, node.steering, checking.present(node, memory(node)))
    seen: list[tuple[int, int]] = [(event.type, event.result) for event in director.events]
    assert seen == [(13, 1), (14, 1), (3, 1), (3, 2)]
    last: Event = director.events[-1]
    assert (last.previous_version, last.next_version) == ("1.0.0", "2.0.0")


def test_nothing_newer_is_no_error(world: World) -> None:
    node = world.node()
    with node.locked() as found, pytest.raises(NothingNewerError):
        checking.check(node, found, by_person=True)
    assert memory_of(world).state is State.IDLE
    assert memory_of(world).last_failure is None
