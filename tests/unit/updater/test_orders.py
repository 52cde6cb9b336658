"""A person's orders, hold and pin: what they stop, what they do not, and how they end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from images.release import tuf_payload_path
from tests.sim.director import Director
from tests.sim.lives import due_now, let_time_pass, memory_of
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, run_until
from updater import verbs
from updater.agent import Wait
from updater.engine import Engine
from updater.errors import EXIT_REFUSED, EXIT_USAGE, EngineBusyError, StateError
from updater.gates import HELD, HoldGate, PinGate
from updater.lifecycle import State
from updater.machine_model import REBOOT_FILE
from updater.node import LOCK_FILE, Node
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.state import Failure, Hold, Store
from updater.verbs import PinnedElsewhereError, VerbOptionsError, perform

ROOT = Path(__file__).parents[3]
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that reboots by itself, at rest on 1.0.0."""
    with World(tmp_path, image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def say(node: Node, verb: str, **options: object) -> Any:  # noqa: ANN401  # facts
    return perform(node, verb, options, by="ada")


def refused(node: Node, verb: str, **options: object) -> AnyRoomError:
    with pytest.raises(ROOM_ERRORS) as caught:
        say(node, verb, **options)
    error: AnyRoomError = caught.value  # type: ignore[assignment]  # one of the families
    return error


def armed(world: World) -> Node:
    """Release 2.0.0 and let a held node arm it."""
    node = world.node()
    say(node, "hold")
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=node), HELD)
    return node


def orders_a_reboot(world: World) -> bool:
    return (world.folder / "run" / REBOOT_FILE).exists()


@contextlib.contextmanager
def busy(world: World) -> Iterator[None]:
    """Let another process hold the engine's lock."""
    lock = world.folder / "state" / LOCK_FILE
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        assert process.stdin is not None
        process.stdin.close()


class TestHold:
    def test_a_held_node_installs_and_does_not_reboot(self, world: World) -> None:
        node = armed(world)
        assert node.store.read_state().state is State.ARMED
        assert node.store.read_state().slots["b"].version == "2.0.0"
        assert not orders_a_reboot(world)

    def test_the_end_of_a_hold_lets_it_reboot(self, world: World) -> None:
        node = armed(world)
        assert say(node, "unhold") == {"held": True}
        run_until(Engine(node=node), "rebooting")
        assert orders_a_reboot(world)
        assert say(node, "unhold") == {"held": False}

    def test_a_hold_ends_by_itself(self, world: World) -> None:
        node = armed(world)
        now = node.clock()
        say(node, "hold", until=(now + timedelta(hours=4)).isoformat())
        wait = Engine(node=node).step()
        assert isinstance(wait, Wait)
        assert wait.code == HELD
        node.clock = lambda: now + timedelta(hours=4)
        due_now(world)
        run_until(Engine(node=node), "rebooting")

    def test_a_hold_can_be_given_while_another_process_works(self, world: World) -> None:
        node = world.node()
        with busy(world):
            say(node, "hold", reason="migration")
            say(node, "pin", version="1.0.0")
            say(node, "unpin")
        hold = node.store.read_hold()
        assert hold is not None
        assert (hold.by, hold.reason) == ("ada", "migration")

    def test_reboot_now_does_not_pass_a_hold(self, world: World) -> None:
        node = armed(world)
        facts = say(node, "reboot", now=True)
        assert facts["waiting"]["code"] == HELD
        assert not orders_a_reboot(world)
        assert node.store.read_state().state is State.ARMED

    def test_reboot_now_passes_every_other_gate(self, world: World) -> None:
        node = armed(world)
        say(node, "unhold")
        node.keep(node.store.read_state(), last_check_code="rollout-stopped")
        assert say(node, "reboot")["waiting"]["code"] == "rollout-stopped"
        assert say(node, "reboot", now=True) == {"ordered": True, "waiting": None}
        assert orders_a_reboot(world)

    def test_a_trial_that_failed_does_not_wait_for_it(self, world: World) -> None:
        node = armed(world)
        say(node, "unhold")
        run_until(Engine(node=node), "rebooting")
        world.health = ["false"]
        world.write_settings()
        engine = Engine(node=world.boot())
        say(engine.node, "hold", reason="do not touch")
        engine.step()
        let_time_pass(world)
        run_until(Engine(node=world.node()), "rebooting")
        assert orders_a_reboot(world)
        world.boot()
        assert memory_of(world).state is State.REBOOTING  # nobody has looked yet
        assert world.node().boot().slot.value == "a"

    def test_the_history_names_who_held_it(self, world: World) -> None:
        node = world.node()
        say(node, "hold", reason="migration")
        say(node, "unhold")
        entries = [(entry["what"], entry["by"]) for entry in say(node, "history", lines=2)]
        assert entries == [("held", "ada"), ("hold ended", "ada")]

    def test_a_time_that_is_past_is_refused(self, world: World) -> None:
        node = world.node()
        past = (node.clock() - timedelta(minutes=1)).isoformat()
        error = refused(node, "hold", until=past)
        assert (error.code, error.exit_status) == ("usage", EXIT_USAGE)
        assert node.store.read_hold() is None


class TestAHoldThatCannotBeRead:
    """Loss costs work, never safety: what may be an order not to reboot is one."""

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 20, b'{"by": 1}'])
    def test_holds_the_node(self, world: World, content: bytes) -> None:
        node = armed(world)
        (node.store.folder / "hold.json").write_bytes(content)
        wait = Engine(node=node).step()
        assert isinstance(wait, Wait)
        assert wait.code == HELD
        assert "hold.json is damaged" in wait.sentence
        assert say(node, "reboot", now=True)["waiting"]["code"] == HELD
        assert say(node, "unhold") == {"held": True}
        run_until(Engine(node=node), "rebooting")

    def test_holds_it_when_the_disk_does_not_give_it(self, tmp_path: Path) -> None:
        (tmp_path / "hold.json").mkdir()
        hold = Store(tmp_path).read_hold()
        assert hold is not None
        assert "Is a directory" in hold.reason
        assert HoldGate(hold).verdict(hold.since).is_open is False

    def test_a_file_that_is_gone_holds_nobody(self, tmp_path: Path) -> None:
        assert Store(tmp_path).read_hold() is None

    def test_a_pin_that_makes_no_sense_is_taken_as_lost(self, world: World) -> None:
        node = world.node()
        (node.store.folder / "pin.json").write_bytes(b"{")
        assert node.store.read_pin() is None
        assert say(node, "unpin") == {"version": None}
        assert not (node.store.folder / "pin.json").exists()


class TestPin:
    @pytest.fixture
    def offered(self, world: World) -> World:
        """2.0.0 and 3.0.0 are allowed; the channel's current one is 3.0.0."""
        world.release("2.0.0", rollback_index=2)
        paths = {v: [tuf_payload_path(PRODUCT, BOARD, v, "full")] for v in ("2.0.0", "3.0.0")}
        world.release("3.0.0", rollback_index=3, allowed=paths)
        return world

    def test_an_automatic_check_takes_the_pinned_version(self, offered: World) -> None:
        node = offered.node()
        say(node, "hold")
        say(node, "pin", version="2.0.0")
        due_now(offered)
        run_until(Engine(node=node), HELD)
        update = node.store.read_state().update
        assert update is not None
        assert (update.version, update.pinned) == ("2.0.0", True)

    def test_a_node_on_its_pinned_version_takes_no_other(self, offered: World) -> None:
        node = offered.node()
        say(node, "pin", version="1.0.0")
        due_now(offered)
        run_until(Engine(node=node), "idle")
        assert node.store.read_state().last_check_code == "nothing-newer"
        assert node.store.read_state().update is None
        assert offered.payloads.sent == 0

    def test_it_takes_the_pinned_version_though_the_server_offers_another(
        self, offered: World
    ) -> None:
        with Director(offer="3.0.0") as director:
            offered.write_settings(first_check_secs=f"0.001\n{director.setting}")
            node = offered.node()
            say(node, "hold")
            say(node, "pin", version="2.0.0")
            due_now(offered)
            run_until(Engine(node=node), HELD)
            assert director.checks
        update = node.store.read_state().update
        assert update is not None
        assert update.version == "2.0.0"

    def test_what_the_channel_forbids_is_refused(self, offered: World) -> None:
        node = offered.node()
        say(node, "pin", version="9.0.0")
        error = refused(node, "update")
        assert (error.code, error.exit_status) == ("not-in-channel", EXIT_REFUSED)
        assert "9.0.0" in str(error)

    def test_another_version_than_the_pinned_one_is_refused(self, offered: World) -> None:
        node = offered.node()
        say(node, "pin", version="2.0.0")
        error = refused(node, "update", version="3.0.0")
        assert isinstance(error, PinnedElsewhereError)
        assert (error.code, error.exit_status) == ("pinned-elsewhere", EXIT_REFUSED)
        assert "version 3.0.0 is asked for, the node is pinned to 2.0.0" in str(error)
        assert say(node, "update", version="2.0.0")["version"] == "2.0.0"

    def test_unpin_follows_the_channel_again(self, offered: World) -> None:
        node = offered.node()
        say(node, "hold")
        say(node, "pin", version="1.0.0")
        assert say(node, "unpin") == {"version": "1.0.0"}
        assert say(node, "unpin") == {"version": None}
        assert say(node, "check")["version"] == "3.0.0"

    @pytest.mark.parametrize("version", ["", "newest", "1.0.0\n", "1" * 65])
    def test_what_is_no_version_is_refused(self, world: World, version: str) -> None:
        error = refused(world.node(), "pin", version=version)
        assert error.code in {"usage", "version-invalid"}
        assert world.node().store.read_pin() is None


class TestTheLock:
    def test_a_verb_waits_for_a_short_look(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = world.node()
        looks: list[bool] = []
        with contextlib.ExitStack() as other:
            other.enter_context(busy(world))

            def let_go(_secs: float) -> bool:
                looks.append(True)
                other.close()
                return False

            monkeypatch.setattr(node.stop, "wait", let_go)
            with node.locked(patience_secs=600):
                assert looks

    def test_a_verb_gives_up_on_long_work(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(verbs, "PATIENCE_SECS", 0.2)
        with busy(world), pytest.raises(EngineBusyError):
            say(world.node(), "confirm")

    def test_a_stop_ends_the_patience(self, world: World) -> None:
        node = world.node()
        node.stop.set()
        with busy(world), pytest.raises(EngineBusyError), node.locked(patience_secs=600):
            pass


class TestOptions:
    @pytest.mark.parametrize(
        ("verb", "options"),
        [
            ("fly", {}),
            ("status", {"fast": True}),
            ("update", {"force": "yes"}),
            ("update", {"version": "1" * 65}),
            ("reboot", {"now": 1}),
            ("hold", {"reason": "x" * 301}),
            ("hold", {"until": "tomorrow"}),
            ("hold", {"until": "2030-01-01T00:00:00"}),
            ("pin", {}),
            ("pin", {"version": 2}),
            ("history", {"lines": -1}),
            ("history", {"lines": 1001}),
            ("permit-set-max", {"places": "many"}),
            ("permit-return", {"holder": "f" * 65}),
        ],
    )
    def test_what_a_verb_does_not_take_is_refused_with_its_name(
        self, tmp_path: Path, verb: str, options: dict[str, object]
    ) -> None:
        del tmp_path
        with pytest.raises(VerbOptionsError) as caught:
            perform(None, verb, options, by="ada")  # type: ignore[arg-type]  # not reached
        assert (caught.value.code, caught.value.exit_status) == ("usage", EXIT_USAGE)
        assert verb in str(caught.value)

    def test_every_verb_takes_its_defaults_or_says_what_it_lacks(self) -> None:
        needing = {"pin", "permit-set-max"}
        for name, verb in verbs.VERBS.items():
            if name not in needing:
                verb.options()

    def test_a_hold_without_end_never_ends(self, world: World) -> None:
        now = world.node().clock()
        assert Hold(since=now, by="ada").holds(now + timedelta(days=36500))


def test_a_pin_keeps_another_version_that_is_armed_from_booting(world: World) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    world.write_settings(reboot='"manual"', poll_interval_secs="600")
    run_until(Engine(node=world.node()), "reboot-manual")
    node = world.node()
    perform(node, "pin", {"version": "1.0.0"}, by="ada")
    told = perform(node, "reboot", {"now": True}, by="ada")
    assert told["waiting"]["code"] == "pinned"
    assert node.store.read_state().state is State.ARMED
    perform(node, "pin", {"version": "2.0.0"}, by="ada")
    assert perform(node, "reboot", {"now": True}, by="ada")["waiting"] is None


@pytest.fixture
def steered(world: World) -> Iterator[tuple[World, Director]]:
    """A node on 1.0.0 whose channel has 2.0.0 and whose server says what the test sets."""
    with Director() as director:
        run_until(Engine(node=world.boot()), "idle")
        world.release("2.0.0", rollback_index=2)
        world.write_settings(poll_interval_secs=f"600\n{director.setting}", reboot='"manual"')
        yield world, director


@pytest.mark.parametrize("code", ["rollout-stopped", "rollout-paused", "failed-here"])
def test_a_named_version_does_not_pass_what_somebody_stopped(
    steered: tuple[World, Director], code: str
) -> None:
    world, director = steered
    director.reason, director.sentence = code, "it did not hold"
    error = refused(world.node(), "update", version="2.0.0")
    assert (error.code, str(error)) == ("nothing-newer", "it did not hold")
    assert say(world.node(), "update", version="2.0.0", force=True)["version"] == "2.0.0"


def test_a_named_version_passes_the_queue_of_a_rollout(steered: tuple[World, Director]) -> None:
    world, director = steered
    director.reason = "rollout-share"
    assert refused(world.node(), "update", force=True).code == "nothing-newer"
    assert say(world.node(), "update", version="2.0.0")["version"] == "2.0.0"


def test_what_failed_here_is_the_answer_even_where_the_server_stopped_it(
    steered: tuple[World, Director],
) -> None:
    """Whether the server has heard of the failure yet is chance; what the node says is not."""
    world, director = steered
    director.reason = "rollout-stopped"
    why = Failure(code="trial-unhealthy", sentence="no", at=world.node().clock())
    world.node().store.deny("2.0.0", why)
    assert refused(world.node(), "update", version="2.0.0").code == "version-denied"


@pytest.mark.parametrize("options", [{"version": ""}, {"payload": ""}, {"version": "two"}])
def test_a_version_or_payload_that_is_none_is_not_an_update_to_anything(
    world: World, options: dict[str, object]
) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.release("2.0.0", rollback_index=2)
    with pytest.raises(VerbOptionsError):
        perform(world.node(), "update", options, by="ada")
    assert world.node().store.read_state().state is State.IDLE


def test_a_pin_names_a_version_and_not_its_spelling() -> None:
    assert PinGate(pinned="2.0", armed="2.0.0").verdict(datetime.now(UTC)).is_open
    assert not PinGate(pinned="2.0.1", armed="2.0.0").verdict(datetime.now(UTC)).is_open


def test_a_pin_that_cannot_be_read_closes_its_gate_and_raises_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.release("2.0.0", rollback_index=2)
    node = world.node()
    perform(node, "update", {}, by="ada")

    def unreadable() -> None:
        raise StateError("an input/output error")

    monkeypatch.setattr(node.store, "read_pin", unreadable)
    closed = [gate for gate in node.gates(node.store.read_state()) if gate.code == "pinned"]
    assert [gate.is_open for gate in closed] == [False]


def test_a_mistyped_payload_does_not_open_the_gate_of_a_stopped_rollout(world: World) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.release("2.0.0", rollback_index=2)
    node = world.node()
    perform(node, "update", {}, by="ada")
    node.keep(node.store.read_state(), last_check_code="rollout-stopped")
    with pytest.raises(ROOM_ERRORS):
        perform(node, "update", {"payload": "/nowhere.crau"}, by="ada")
    assert node.store.read_state().last_check_code == "rollout-stopped"


@pytest.mark.parametrize("reason", ["a\x00b", "\x1b[2J", "two\nlines"])
def test_a_reason_has_no_control_characters(world: World, reason: str) -> None:
    with pytest.raises(VerbOptionsError):
        perform(world.boot(), "hold", {"reason": reason}, by="ada")


def test_a_server_that_cannot_be_asked_does_not_open_the_gate_of_a_stopped_rollout(
    world: World,
) -> None:
    run_until(Engine(node=world.boot()), "idle")
    world.release("2.0.0", rollback_index=2)
    node = world.node()
    perform(node, "update", {}, by="ada")
    node.keep(node.store.read_state(), last_check_code="rollout-stopped")
    world.write_settings(metadata_url='"http://127.0.0.1:9/metadata/"')
    with pytest.raises(ROOM_ERRORS):
        perform(world.node(), "update", {}, by="ada")
    memory = node.store.read_state()
    assert (memory.last_check_code, memory.checks_failed) == ("rollout-stopped", 1)
