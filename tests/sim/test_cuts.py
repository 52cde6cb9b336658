"""Power cut, or process killed, before every lasting change of every verb: it always ends well.

Design, promises 1, 2, 5 and 6. "Well" is: the node rests in IDLE, in a confirmed slot that holds a
whole image and is the target; no permit is kept; and no version is blamed that never got its trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from partitions.boot import KEEPERS
from partitions.slots import Slot
from tests.sim.cuts import NEVER, Fuse, LifeEndsError, Snapshot, fused
from tests.sim.lives import assert_rests_well, due_now, live, new_process
from tests.sim.loaders import quick
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, run_until
from updater import rebooting
from updater.engine import Engine
from updater.lifecycle import State
from updater.node import Node
from updater.state import NodeState

POWER_CUT = "power cut"
KILL = "kill"
THREADS = {"write journal.json", "write traffic.json"}


@pytest.fixture(params=quick(KEEPERS, "gptprio", "systemd-boot"))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=512 * 1024, boot_control=request.param) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def life(until: str) -> Callable[[Node], None]:
    """Return a life in which the engine works until it waits with a code."""
    return lambda node: run_until(Engine(node=node), until)


def verb(do: Callable[[Node, NodeState], object]) -> Callable[[Node], None]:
    """Return a life in which a person gives one command."""

    def lived(node: Node) -> None:
        with node.locked() as memory:
            do(node, memory)

    return lived


class Cutter:
    """Cuts one life at each of its steps and lets the node live on; asks for the end each time."""

    def __init__(
        self, world: World, monkeypatch: pytest.MonkeyPatch, lived: Callable[[Node], None]
    ) -> None:
        self.world = world
        self._monkeypatch = monkeypatch
        self._lived = lived
        self._kept = Snapshot.take(world)
        fuse = Fuse(at=NEVER)
        lived(fused(new_process(world, monkeypatch), fuse))
        self.steps = fuse.steps

    def each_end(self, how: str) -> Iterator[tuple[str, Node]]:
        """Yield, for each step, its name and the node as it rests after the cut before it.

        Journal and traffic are written by two threads: which of them is first may change.
        """
        assert self.steps
        for number in range(len(self.steps)):
            self._kept.restore()
            node = fused(new_process(self.world, self._monkeypatch), Fuse(at=number))
            with pytest.raises(LifeEndsError) as ended:
                self._lived(node)
            step = str(ended.value)
            assert step == self.steps[number] or {step, self.steps[number]} == THREADS, number
            if how == POWER_CUT:
                self.world.boot()
            new_process(self.world, self._monkeypatch)
            live(self.world)
            yield f"{how} before step {number}, {step}", self.world.node()


@pytest.mark.parametrize("how", [POWER_CUT, KILL])
class TestAnUpdate:
    def test_up_to_the_reboot_order(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        cutter = Cutter(world, monkeypatch, life("rebooting"))
        assert {"disarm b", "arm b", "order the reboot"} <= set(cutter.steps)
        assert cutter.steps.index("write trial") == cutter.steps.index("arm b") - 1
        for where, node in cutter.each_end(how):
            assert assert_rests_well(world, node, where) == "2.0.0", where
            assert node.store.read_denied() == {}, where
            assert node.store.read_floor() == 2, where

    def test_from_the_first_boot_to_the_confirmation(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "rebooting")
        world.boot()
        cutter = Cutter(world, monkeypatch, life("idle"))
        confirmed_at = cutter.steps.index("confirm b")
        assert cutter.steps[confirmed_at + 1] == "drop trial"
        noted_at = cutter.steps.index("write state.json")
        assert noted_at < confirmed_at
        for number, (where, node) in enumerate(cutter.each_end(how)):
            version = assert_rests_well(world, node, where)
            if how == KILL or number > noted_at:  # one reset of a trial is forgiven
                assert version == "2.0.0", where
                assert node.store.read_denied() == {}, where
                assert node.store.read_floor() == 2, where
            else:  # the only try was spent, and nobody knows that it came up
                assert version == "1.0.0", where
                assert list(node.store.read_denied()) == ["2.0.0"], where
                assert node.store.read_floor() < 2, where

    def test_that_is_not_healthy_on_its_way_back(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
        world.write_settings(deadline_secs="0.001")
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "rebooting")
        world.boot()
        cutter = Cutter(world, monkeypatch, life("rebooting"))
        assert "reject b" in cutter.steps
        noted_at = cutter.steps.index("write state.json")
        for number, (where, node) in enumerate(cutter.each_end(how)):
            assert assert_rests_well(world, node, where) == "1.0.0", where
            assert list(node.store.read_denied()) == ["2.0.0"], where
            assert not node.loader.read().slots[Slot.B].armed, where
            judged = node.store.read_denied()["2.0.0"].code == "trial-unhealthy"
            # A cut in a trial that was seen is forgiven once: its next trial judges.
            assert judged == (how == KILL or number > noted_at), where

    def test_whose_machine_is_shut_down_in_its_trial(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "rebooting")
        with world.boot().locked():
            pass  # a process notes the boot
        cutter = Cutter(world, monkeypatch, verb(rebooting.give_try_back))
        armed_at = cutter.steps.index("arm b")
        for number, (where, node) in enumerate(cutter.each_end(how)):
            version = assert_rests_well(world, node, where)
            denied = [why.code for why in node.store.read_denied().values()]
            if how == KILL:
                assert (version, denied) == ("2.0.0", []), where
            else:  # before it was given back: a loss of power in a trial, or just after
                noted = number > cutter.steps.index("write state.json", 1)
                ended = ("1.0.0", ["trial-shut-down"]) if noted else ("2.0.0", [])
                assert (version, denied) == ended, where
                assert number <= armed_at

    def test_that_is_replaced_by_a_newer_one(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
        both = {
            version: [f"os/{PRODUCT}/{BOARD}/{version}/full.crau"] for version in ("2.0.0", "3.0.0")
        }
        world.release("3.0.0", rollback_index=3, allowed=both)
        due_now(world)
        manual = world.settings()
        world.write_settings(reboot='"automatic"')  # for the life after the cut

        def lived(node: Node) -> None:
            node.settings = manual
            life("reboot-manual")(node)

        cutter = Cutter(world, monkeypatch, lived)
        assert "disarm b" in cutter.steps
        for where, node in cutter.each_end(how):
            assert assert_rests_well(world, node, where) in {"2.0.0", "3.0.0"}, where
            assert node.store.read_denied() == {}, where


@pytest.mark.parametrize("how", [POWER_CUT, KILL])
class TestACommand:
    def test_that_takes_an_armed_update_back(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
        world.write_settings(reboot='"automatic"', poll_interval_secs="3600")
        cutter = Cutter(world, monkeypatch, verb(rebooting.roll_back))
        denied_at = cutter.steps.index("write denied.json")
        disarmed_at = cutter.steps.index("disarm b")
        for number, (where, node) in enumerate(cutter.each_end(how)):
            version = assert_rests_well(world, node, where)
            denied = {name: why.code for name, why in node.store.read_denied().items()}
            if number > disarmed_at:
                assert version == "1.0.0", where
                assert denied == {"2.0.0": "rolled-back"}, where
            elif number <= denied_at:
                assert denied == {}, where

    def test_that_rolls_back(self, world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        world.release("2.0.0", rollback_index=1)
        due_now(world)
        live(world)
        assert world.node().running().version == "2.0.0"
        cutter = Cutter(world, monkeypatch, verb(rebooting.roll_back))
        assert "arm a" in cutter.steps
        for where, node in cutter.each_end(how):
            assert assert_rests_well(world, node, where) in {"1.0.0", "2.0.0"}, where
            assert "1.0.0" not in node.store.read_denied(), where

    def test_that_takes_a_rollback_back(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        world.release("2.0.0", rollback_index=1)
        due_now(world)
        live(world)
        world.write_settings(reboot='"manual"')
        verb(rebooting.roll_back)(world.node())
        world.write_settings(reboot='"automatic"')
        cutter = Cutter(world, monkeypatch, verb(rebooting.roll_back))
        for where, node in cutter.each_end(how):
            version = assert_rests_well(world, node, where)
            assert version in {"1.0.0", "2.0.0"}, where
            assert "1.0.0" not in node.store.read_denied(), where
            if version == "2.0.0":
                assert node.loader.read().slots[Slot.A].confirmed, where

    def test_that_confirms(self, world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "rebooting")
        memory = world.boot().store.read_state()
        assert memory.state is State.REBOOTING
        node = world.node()
        with node.locked() as found:  # a process notes the boot
            node.keep(found, reset_versions=("2.0.0",))  # another reset is not forgiven
        cutter = Cutter(world, monkeypatch, verb(rebooting.confirm))
        confirmed_at = cutter.steps.index("confirm b")
        for number, (where, node) in enumerate(cutter.each_end(how)):
            version = assert_rests_well(world, node, where)
            expected = "2.0.0" if how == KILL or number > confirmed_at else "1.0.0"
            assert version == expected, where
