"""What a check leaves behind: on a real disk file, with a real repository and an Omaha server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.sim.director import Director
from tests.sim.lives import due_now, memory_of
from tests.sim.payload_server import Manners
from tests.sim.world import World, run_until
from updater import checking, shown
from updater.engine import Engine
from updater.errors import EngineBusyError
from updater.lifecycle import State
from updater.rooms import ROOM_ERRORS
from updater.schedule import SERVER_HINT_MAX
from updater.state import NodeState
from updater.steering import ServerUnreachableError


@pytest.fixture
def director() -> Iterator[Director]:
    with Director() as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, director: Director) -> Iterator[World]:
    """A steered node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=512 * 1024) as made:
        steer(made, director)
        run_until(Engine(node=made.boot()), "idle")
        yield made


def steer(world: World, director: Director) -> None:
    world.write_settings(poll_interval_secs=f"1\n{director.setting}", reboot='"manual"')


def check(world: World) -> NodeState:
    """Let the node check, whatever comes of it; returns the memory."""
    due_now(world)
    engine = Engine(node=world.node())
    with contextlib.suppress(*ROOM_ERRORS):
        engine.step()
    return memory_of(world)


def pause_of(memory: NodeState) -> timedelta:
    assert memory.last_check is not None
    assert memory.next_check is not None
    return memory.next_check - memory.last_check


class TestWhatTheServerSays:
    def test_nothing_now_is_remembered_with_its_reason(
        self, world: World, director: Director
    ) -> None:
        memory = check(world)
        assert memory.state is State.IDLE
        assert (memory.last_check_code, memory.last_check_sentence) == (
            "group-paused",
            "the group is paused",
        )
        lines = "\n".join(shown.status_lines(shown.status(world.node())))
        assert "the group is paused [group-paused]" in lines
        assert director.checks[-1].state == "idle"

    def test_an_offer_that_the_channel_allows_is_taken(
        self, world: World, director: Director
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        director.offer = "2.0.0"
        assert check(world).state is State.ARMED

    def test_an_offer_that_nobody_signed_is_refused(self, world: World, director: Director) -> None:
        """Omaha says when, TUF says what."""
        director.offer = "6.6.6"
        memory = check(world)
        assert (memory.state, memory.last_check_code) == (State.IDLE, "not-in-channel")
        assert world.payloads.sent == 0

    def test_silence_is_not_overruled_by_the_channel(self, world: World) -> None:
        world.release("2.0.0", rollback_index=2)
        assert check(world).state is State.IDLE

    @pytest.mark.parametrize(
        ("asked_secs", "pause"),
        [
            (None, timedelta(seconds=1)),
            (0, timedelta(seconds=1)),
            (600, timedelta(seconds=600)),
            (-5, timedelta(seconds=1)),
            (10**9, SERVER_HINT_MAX),
            (10**30, timedelta(seconds=1)),  # no number that anyone means
        ],
    )
    def test_it_may_slow_a_node_down_but_not_switch_it_off(
        self, world: World, director: Director, asked_secs: int | None, pause: timedelta
    ) -> None:
        director.poll_secs = asked_secs
        assert pause_of(check(world)) == pytest.approx(pause, abs=timedelta(seconds=1))


class TestAServerThatIsNotThere:
    def test_is_asked_less_and_less_often(self, world: World) -> None:
        with Director() as gone:
            steer(world, gone)
        pauses = []
        engine = Engine(node=world.node())
        for _ in range(4):
            node = world.node()
            node.keep(node.store.read_state(), next_check=None)
            with pytest.raises(ServerUnreachableError):
                engine.step()
            pauses.append(round(pause_of(memory_of(world)).total_seconds()))
        assert pauses == [2, 4, 8, 16]

    def test_never_causes_a_rollback(self, world: World, director: Director) -> None:
        """Promise 8: being offline during a trial is no illness."""
        world.release("2.0.0", rollback_index=2)
        director.offer = "2.0.0"
        check(world)
        with Director() as gone:
            steer(world, gone)
        world.server.behaviours.clear()
        node = world.boot()
        run_until(Engine(node=node), "idle")
        assert node.running().version == "2.0.0"
        assert node.loader.read().slots[node.boot().slot].confirmed


class TestAServerThatIsSilentAboutSomethingNewer:
    """The one attack that signatures do not show."""

    def test_is_noticed_and_told_aloud_after_a_while(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        memory = check(world)
        since = memory.newer_since
        assert since is not None
        assert shown.status(world.node())["held_back_since"] == since.isoformat()
        assert not [record for record in caplog.records if "held-back" in record.getMessage()]
        days = world.settings().trust.max_holdback_days
        long_ago = since - timedelta(days=days)
        world.node().keep(memory, newer_since=long_ago)
        check(world)
        alarms = [record for record in caplog.records if "code=held-back" in record.getMessage()]
        assert [record.levelno for record in alarms] == [logging.ERROR]
        assert memory_of(world).newer_since == long_ago

    def test_is_forgotten_once_the_newer_one_runs(self, world: World, director: Director) -> None:
        world.release("2.0.0", rollback_index=2)
        assert check(world).newer_since is not None
        director.offer = "2.0.0"
        check(world)
        run_until(Engine(node=world.boot()), "idle")
        director.offer = ""
        assert check(world).newer_since is None


class TestTwoAtOnce:
    def test_the_second_is_told_that_the_engine_is_busy(self, world: World) -> None:
        first, second = world.node(), world.node()
        with first.locked(), pytest.raises(EngineBusyError) as caught, second.locked():
            pass
        assert caught.value.code == "engine-busy"

    def test_the_lock_is_let_go_whatever_happens(self, world: World) -> None:
        class OddError(Exception):
            pass

        node = world.node()
        with pytest.raises(OddError), node.locked():
            raise OddError
        with node.locked():
            pass


class TestMirrors:
    def test_of_the_settings_come_before_those_of_the_server(
        self, world: World, director: Director
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        director.offer = "2.0.0"
        due_now(world)
        node = world.node()
        with node.locked() as memory:
            found = checking.look(node, memory, by_person=False)
        assert found.urls[0].startswith(world.payloads.base)

    def test_one_with_a_wrong_signature_is_left_for_the_next(
        self, world: World, director: Director
    ) -> None:
        """Every blob is right, only the last message is not: a mirror can only cost time."""
        from tests.sim.payload_server import PayloadServer

        data = world.release("2.0.0", rollback_index=2)
        director.offer = "2.0.0"
        manners = Manners(flip_at=len(data) - 5)
        with PayloadServer(files=world.payloads.files, manners=manners) as bad:
            world.write_settings(
                poll_interval_secs=f"1\n{director.setting}",
                reboot='"manual"',
                mirrors=f'["{bad.base}", "{world.payloads.base}"]',
            )
            memory = check(world)
        assert bad.sent > 0
        assert memory.state is State.ARMED
