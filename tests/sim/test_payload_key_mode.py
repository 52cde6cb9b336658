"""A node that follows a stock Nebraska: no TUF, payload signature and image decide."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.slots import Slot
from tests.sim.lives import due_now
from tests.sim.nebraska import COMPLETE, DOWNLOADED, DOWNLOADING, ERROR, GRANTED, Nebraska, Package
from tests.sim.node_deltas import apart
from tests.sim.payloads import key
from tests.sim.plain import is_armed, memory_of, plain_payload, serve
from tests.sim.world import World, run_until
from updater import shown
from updater.checking import present
from updater.daemon import Daemon
from updater.engine import Engine
from updater.errors import SettingsError
from updater.lifecycle import State
from updater.node import Node
from updater.rooms import ROOM_ERRORS
from updater.settings import load
from updater.steering import flush
from updater.verbs import perform


@pytest.fixture(params=[False, True], ids=["other-app", "flatcar-app"])
def nebraska(request: pytest.FixtureRequest) -> Iterator[Nebraska]:
    with Nebraska(flatcar=request.param) as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, nebraska: Nebraska) -> Iterator[World]:
    with World(tmp_path) as made:
        follow(made, nebraska)
        nebraska.package = Package("1.0.0", made.payloads.base, "1.0.0.crau", b"what runs")
        yield made


@pytest.fixture
def node(world: World) -> Node:
    made = world.boot()
    run_until(Engine(node=made), "idle")
    return made


def follow(world: World, nebraska: Nebraska, *, download: str = "") -> None:
    """Let the world's node follow this server, and no repository."""
    world.write_settings(
        poll_interval_secs=f'1\nomaha_url = "{nebraska.url}"',
        metadata_url='""\nmode = "payload-key"',
        mirrors=f"[]\n{download}",
    )


def publish(world: World, nebraska: Nebraska, payload: Path, version: str, **more: object) -> None:
    serve(world, payload)
    nebraska.package = Package(
        version=version,
        codebase=world.payloads.base,  # without the slash, as other servers send it
        name=payload.name,
        data=payload.read_bytes(),
        **more,  # type: ignore[arg-type]  # fields are free
    )


def look(world: World, node: Node) -> None:
    """Let the node check, and install what it is offered; then tell the server."""
    due_now(world)
    with contextlib.suppress(*ROOM_ERRORS), node.locked() as memory:
        Engine(node=node)._check(memory)
    tell(node)


def tell(node: Node) -> None:
    assert node.steering is not None
    flush(node.store, node.steering, present(node, memory_of(node)))


@pytest.mark.parametrize("major", [1, 2])
class TestAnUpdate:
    def test_goes_all_the_way_and_the_server_follows(
        self, world: World, node: Node, nebraska: Nebraska, major: int
    ) -> None:
        publish(
            world, nebraska, plain_payload(world, "2.0.0", rollback_index=2, major=major), "2.0.0"
        )
        look(world, node)

        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        assert nebraska.events == [(13, 1, None, None), (14, 1, None, None), (3, 1, None, None)]
        assert nebraska.state == (DOWNLOADED if nebraska.flatcar else COMPLETE)
        run_until(Engine(node=node), "rebooting")

        node = world.boot()
        run_until(Engine(node=node), "idle")
        tell(node)
        assert nebraska.events[-1] == (3, 2, None, "1.0.0")
        assert [event[:2] for event in nebraska.events].count((3, 2)) == 1
        assert (nebraska.state, nebraska.recorded) == (COMPLETE, "2.0.0")
        look(world, node)
        assert memory_of(node).last_check_code == "server-noupdate"

    def test_resumes_without_asking_a_server_that_thinks_it_is_under_way(
        self,
        world: World,
        node: Node,
        nebraska: Nebraska,
        major: int,
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0", major=major), "2.0.0")
        world.payloads.manners.cut_after = 3 * 1024 * 1024
        world.payloads.manners.ranges = False
        look(world, node)
        assert memory_of(node).state is State.INSTALLING
        assert nebraska.state == DOWNLOADING
        checks = nebraska.checks

        world.payloads.manners.cut_after = None
        node = world.node()
        due_now(world)
        run_until(Engine(node=node), "rebooting")
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        assert nebraska.checks == checks


class TestADelta:
    def offer(self, world: World, nebraska: Nebraska, source: bytes) -> None:
        world.image("2.0.0", rollback_index=2)
        path = world.folder / "delta.crau"
        path.write_bytes(apart(source, world.image_bytes("2.0.0")))
        publish(world, nebraska, path, "2.0.0", delta=True)

    def test_that_starts_from_what_runs_is_applied(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        self.offer(world, nebraska, world.image_bytes("1.0.0"))
        look(world, node)
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        assert nebraska.events[-1][:2] == (3, 1)

    def test_that_starts_from_something_else_is_refused_and_told(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        before = world.slot_bytes(Slot.B)
        self.offer(world, nebraska, bytes(world.image_size))
        look(world, node)
        assert world.slot_bytes(Slot.B) == before
        assert nebraska.events[-1][:3] == (3, 0, "20")


class TestAFailure:
    @pytest.mark.parametrize(("major", "number"), [(1, "18"), (2, "26")])
    def test_of_a_payload_that_another_key_signed_is_told_and_denied_in_the_end(
        self, world: World, node: Node, nebraska: Nebraska, major: int, number: str
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=major, keys=[key()])
        publish(world, nebraska, payload, "2.0.0")

        look(world, node)
        assert nebraska.events[-1] == (3, 0, number, None)
        assert nebraska.state == ERROR
        assert not is_armed(node)

        for _ in range(node.settings.updates.max_attempts):
            look(world, node)
        assert memory_of(node).last_check_code == "version-denied"
        assert not is_armed(node)

    def test_of_a_digest_that_is_not_the_offered_one_is_told(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=1)
        publish(world, nebraska, payload, "2.0.0", sha256="A" * 43 + "=")

        look(world, node)

        assert nebraska.events[-1] == (3, 0, "10", None)
        assert not is_armed(node)

    def test_of_a_trial_is_told_as_a_rollback(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        look(world, node)
        run_until(Engine(node=node), "rebooting")
        world.health = ["false"]
        follow(world, nebraska)
        world.write_settings(
            poll_interval_secs=f'1\nomaha_url = "{nebraska.url}"',
            metadata_url='""\nmode = "payload-key"',
            deadline_secs="0.3",
        )
        run_until(Engine(node=world.boot()), "rebooting", steps=100_000)
        world.health = ["true"]
        follow(world, nebraska)

        node = world.boot()
        assert node.boot().slot is Slot.A
        run_until(Engine(node=node), "idle")
        tell(node)

        assert nebraska.events[-1][:3] == (3, 0, "44")
        look(world, node)
        assert memory_of(node).last_check_code == "version-denied"

    def test_a_cancelled_update_is_told(self, world: World, node: Node, nebraska: Nebraska) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        look(world, node)

        perform(node, "rollback", {}, by="test")
        tell(node)

        assert nebraska.events[-1][:2] == (3, 0)
        assert nebraska.state == (ERROR if nebraska.flatcar else COMPLETE)


class TestWhatIsNotWanted:
    def nothing(self, world: World, node: Node, code: str) -> None:
        before = world.slot_bytes(Slot.B)
        look(world, node)
        memory = memory_of(node)
        assert (memory.state, memory.last_check_code) == (State.IDLE, code)
        assert memory.last_check_sentence
        assert world.slot_bytes(Slot.B) == before

    @pytest.mark.parametrize(
        "status",
        [
            "error-maxUpdatesPerPeriodLimitReached",
            "error-maxConcurrentUpdatesLimitReached",
        ],
    )
    def test_throttling_is_a_wait(
        self, world: World, node: Node, nebraska: Nebraska, status: str
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        nebraska.throttle = status
        self.nothing(world, node, "server-throttled")
        assert memory_of(node).checks_failed == 0

        nebraska.throttle = ""
        look(world, node)
        assert is_armed(node)

    def test_an_offer_beyond_the_budget_is_told_and_a_cheaper_one_is_seen(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        follow(world, nebraska, download="max_mib_per_update = 1\n")
        node = world.node()
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        look(world, node)
        assert memory_of(node).state is State.IDLE
        assert memory_of(node).last_check_code == "budget-update"
        assert nebraska.events[-1][:2] == (3, 0)

        follow(world, nebraska)
        node = world.node()
        publish(world, nebraska, plain_payload(world, "3.0.0"), "3.0.0")
        look(world, node)
        assert is_armed(node)
        assert world.slot_bytes(Slot.B) == world.image_bytes("3.0.0")

    def test_a_server_that_waits_for_an_install_nobody_remembers_is_told_of_its_end(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        nebraska.state, nebraska.granted = DOWNLOADING, "2.0.0"
        self.nothing(world, node, "server-in-progress")
        assert (nebraska.events[-1][:2], nebraska.state) == ((3, 0), ERROR)

        look(world, node)
        assert is_armed(node)

    def test_an_offer_that_is_not_newer(
        self, world: World, node: Node, nebraska: Nebraska, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(world, nebraska, plain_payload(world, "0.9.0"), "0.9.0")
        monkeypatch.setattr(
            Nebraska,
            "_check",
            lambda self, _: ("ok", f'<updatecheck status="ok">{self.package.xml()}</updatecheck>'),
        )
        self.nothing(world, node, "nothing-newer")

    @pytest.mark.parametrize(
        ("claim", "code"), [("2.0.0", "wrong-version"), ("0.9.0", "nothing-newer")]
    )
    def test_an_old_image_under_a_new_name_is_never_armed_not_even_by_force(
        self,
        world: World,
        node: Node,
        nebraska: Nebraska,
        claim: str,
        code: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        publish(world, nebraska, plain_payload(world, "0.9.0"), claim)
        monkeypatch.setattr(
            Nebraska,
            "_check",
            lambda self, _: ("ok", f'<updatecheck status="ok">{self.package.xml()}</updatecheck>'),
        )
        with pytest.raises(ROOM_ERRORS) as caught:
            perform(node, "update", {"force": True}, by="test")

        assert getattr(caught.value, "code", "") == code
        assert not is_armed(node)

    def test_a_size_that_no_slot_holds(self, world: World, node: Node, nebraska: Nebraska) -> None:
        nebraska.package = Package("2.0.0", world.payloads.base, "huge", bytes(40 * 1024 * 1024))
        world.payloads.files["huge"] = nebraska.package.data
        look(world, node)
        failure = memory_of(node).last_failure
        assert failure is not None
        assert failure.code == "does-not-fit"
        assert not is_armed(node)

    def test_what_the_server_granted_is_offered_again_until_it_runs(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        perform(node, "check", {}, by="test")
        assert nebraska.state == GRANTED
        look(world, node)
        assert is_armed(node)


class TestAfterTheModeEnds:
    """A node that follows signed metadata again owes nothing to what a plain server offered."""

    def trust_again(self, world: World) -> Node:
        world.write_settings()
        return world.node()

    def test_what_was_armed_must_be_allowed_by_the_channel(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        look(world, node)
        assert is_armed(node)

        node = self.trust_again(world)
        with pytest.raises(ROOM_ERRORS) as caught, node.locked() as memory:
            Engine(node=node)._check(memory)

        assert getattr(caught.value, "code", "") == "armed-withdrawn"
        assert not is_armed(node)

    def test_what_was_being_written_is_what_the_channel_names_or_nothing(
        self, world: World, node: Node, nebraska: Nebraska
    ) -> None:
        publish(world, nebraska, plain_payload(world, "2.0.0"), "2.0.0")
        world.payloads.manners.cut_after = 3 * 1024 * 1024
        world.payloads.manners.ranges = False
        look(world, node)
        assert memory_of(node).state is State.INSTALLING
        world.payloads.manners.cut_after = None

        node = self.trust_again(world)
        with node.locked() as memory:
            Engine(node=node)._install(memory)

        assert memory_of(node).state is State.IDLE
        assert not is_armed(node)


class TestTheSettings:
    def test_the_mode_is_warned_about_at_each_start_and_in_status(
        self, world: World, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        node.stop.set()
        with caplog.at_level(logging.WARNING):
            Daemon(node).run()
        assert "code=payload-key-mode" in caplog.text
        facts = shown.status(world.node())
        assert facts["trust"] == "payload-key"
        assert "[payload-key-mode]" in "\n".join(shown.status_lines(facts))

    @pytest.mark.parametrize(
        ("changes", "missing"),
        [({"payload_keys": "[]"}, "payload_keys"), ({"poll_interval_secs": "1"}, "omaha_url")],
    )
    def test_what_could_vouch_or_steer_must_be_named(
        self, world: World, nebraska: Nebraska, changes: dict[str, str], missing: str
    ) -> None:
        lines = {
            "poll_interval_secs": f'1\nomaha_url = "{nebraska.url}"',
            "metadata_url": '""\nmode = "payload-key"',
        }
        world.write_settings(**(lines | changes))
        with pytest.raises(SettingsError, match=missing):
            load(world.config)
