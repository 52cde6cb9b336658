"""Trials that end badly or late: who goes back, and what is remembered and told of it.

Time does not pass by itself here: a test makes a boot older. Design, promise 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot.gptprio import GptPriorities
from partitions.slots import Slot
from tests.sim.director import Director
from tests.sim.lives import due_now, let_time_pass, live, memory_of, new_process
from tests.sim.trials import CONFIRMED, DISARMED, armed, memory, on_trial, sick_of
from tests.sim.world import World, run_until
from updater import checking, rebooting, shown, updating
from updater.agent import Wait
from updater.bus.view import properties
from updater.daemon import Daemon
from updater.engine import Engine
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE, STOPPING_FILE
from updater.metrics import render
from updater.metrics_file import take_snapshot
from updater.node import Node
from updater.steering import flush
from updater.trust.errors import VersionDeniedError
from updater.why import explain


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
