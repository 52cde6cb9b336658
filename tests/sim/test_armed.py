"""From an offer to the reboot: what keeps an armed node, what replaces it, what failures leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.slots import Slot
from tests.sim.director import Director
from tests.sim.lives import due_now, live, memory_of, new_process
from tests.sim.payload_server import Manners
from tests.sim.trials import BOTH, CONFIRMED, DISARMED, armed, memory, on_trial
from tests.sim.world import World, run_until
from updater import checking, rebooting
from updater.checking import ArmedAlreadyError
from updater.engine import Engine
from updater.errors import EXIT_ARMED
from updater.lifecycle import State
from updater.omaha import Event
from updater.pipeline import PayloadDigestError
from updater.steering import flush
from updater.trust.errors import NothingNewerError


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
        with pytest.raises(PayloadDigestError):
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
