"""`bascule why` tells what the engine does next, and every condition with code and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.sim.etcd import etcd_programs, running_etcd
from tests.sim.lives import due_now, memory_of
from tests.sim.world import World, run_until
from updater import shown
from updater.agent import Wait
from updater.engine import Engine
from updater.lifecycle import State
from updater.node import Node
from updater.rooms import ROOM_ERRORS
from updater.shown import status
from updater.verbs import perform
from updater.why import explain, lines

# What `why` calls by another name than the agent, as there is a time to tell.
NAMES: Final = {"idle": "check-later"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, image_size=512 * 1024) as made:
        yield made


def rows(facts: dict[str, Any], step: str) -> dict[str, bool]:
    return {row["code"]: row["open"] for row in facts["conditions"] if row["step"] == step}


def booted(world: World) -> Node:
    node = world.boot()
    run_until(Engine(node=node), "idle")
    return node


def slow(world: World) -> None:
    """Make the pause between checks long, so that a node comes to rest."""
    world.write_settings(poll_interval_secs="600")


def idle(world: World) -> Node:
    slow(world)
    return booted(world)


def manual_checks(world: World) -> Node:
    world.write_settings(reboot='"automatic"\nautomatic = false')
    return booted(world)


def armed(world: World, code: str) -> Node:
    booted(world)
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    node = world.node()
    run_until(Engine(node=node), code)
    return node


def armed_by_hand(world: World) -> Node:
    world.write_settings(reboot='"manual"', poll_interval_secs="600")
    return armed(world, "reboot-manual")


def held(world: World) -> Node:
    slow(world)
    perform(booted(world), "hold", {"reason": "migration"}, by="ada")
    return armed(world, "held")


def unheld(world: World) -> Node:
    node = held(world)
    perform(node, "unhold", {}, by="ada")
    return node


def rebooting(world: World) -> Node:
    slow(world)
    return armed(world, "rebooting")


def fresh_trial(world: World) -> Node:
    rebooting(world)
    node = world.boot()
    with node.locked():
        pass  # a look: what the boot means is found out
    return node


def failing_trial(world: World) -> Node:
    fresh_trial(world)
    world.health = ["false"]
    slow(world)
    node = world.node()
    Engine(node=node).step()
    return node


def pinned(world: World) -> Node:
    node = idle(world)
    perform(node, "pin", {"version": "1.0.0"}, by="ada")
    return node


def cut_install(world: World) -> Node:
    """An install that found no mirror and waits for its next try."""
    slow(world)
    booted(world)
    world.release("2.0.0", rollback_index=2)
    world.payloads.files.clear()
    due_now(world)
    node = world.node()
    with pytest.raises(ROOM_ERRORS):
        Engine(node=node).step()
    return node


def due(world: World) -> Node:
    node = idle(world)
    due_now(world)
    return node


STATES: Final = (
    idle,
    manual_checks,
    armed_by_hand,
    held,
    unheld,
    rebooting,
    fresh_trial,
    failing_trial,
    pinned,
    cut_install,
    due,
)


@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_the_next_step_is_the_one_that_the_engine_then_takes(
    world: World, make: Callable[[World], Node]
) -> None:
    node = make(world)
    told = explain(node)["next"]
    taken = Engine(node=node).step()
    if isinstance(taken, Wait) and taken.code != "rebooting":
        assert told["code"] == (NAMES.get(taken.code, taken.code) if taken.until else taken.code)
        ends = {gate.code: gate.opens_at for gate in node.gates(memory_of(world))}
        end = ends.get(taken.code, taken.until)  # a gate's own end, not the next look at it
        assert told["until"] == (end.isoformat(timespec="seconds") if end else None)
    elif make is rebooting:
        assert told["code"] == "rebooting"
    elif make is failing_trial:
        assert told["code"] == memory_of(world).waiting_code == "health-failing"
    else:
        assert told["code"] == "now"


@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_it_changes_nothing_and_asks_no_server(world: World, make: Callable[[World], Node]) -> None:
    node = make(world)
    before = (memory_of(world), world.payloads.sent)
    explain(node)
    assert (memory_of(world), world.payloads.sent) == before


class TestConditions:
    def test_of_a_node_at_rest(self, world: World) -> None:
        facts = explain(idle(world))
        assert (facts["state"], facts["version"], facts["next"]["code"]) == (
            "idle",
            None,
            "check-later",
        )
        assert rows(facts, "update") == {
            "checks-automatic": True,
            "booted-confirmed": True,
            "nothing-newer": True,
            "check-later": False,
        }
        assert rows(facts, "reboot") == {
            "nothing-armed": False,
            "not-held": True,
            "not-inhibited": True,
            "pin": True,
            "rollout": True,
            "reboot-automatic": True,
            "permit-none": True,
        }

    def test_of_a_node_that_leaves_deltas_out(self, world: World) -> None:
        world.write_settings(retries="2\nrecode_max_mib = 40")
        facts = explain(booted(world))
        assert rows(facts, "update")["recode-limit"] is True
        (told,) = (r["sentence"] for r in facts["conditions"] if r["code"] == "recode-limit")
        assert told == "deltas that pack more than 40 MiB again are not taken"

    def test_of_a_node_that_is_held(self, world: World) -> None:
        node = held(world)
        end = node.clock() + timedelta(hours=4)
        perform(node, "hold", {"reason": "why not", "until": end.isoformat()}, by="ada")
        facts = explain(node)
        row = next(row for row in facts["conditions"] if row["code"] == "held")
        assert row["open"] is False
        assert row["until"] == end.isoformat(timespec="seconds")
        assert "ada holds this node: " in row["sentence"]
        assert "why not" in row["sentence"]

    def test_of_a_node_that_is_pinned(self, world: World) -> None:
        facts = explain(pinned(world))
        assert rows(facts, "update")["pinned"] is False
        sentence = next(r["sentence"] for r in facts["conditions"] if r["code"] == "pinned")
        assert sentence == "ada pinned this node to version 1.0.0; `bascule unpin` ends it"

    def test_of_checks_and_reboots_by_hand(self, world: World) -> None:
        assert rows(explain(manual_checks(world)), "update")["checks-manual"] is False

    def test_of_reboots_by_hand(self, world: World) -> None:
        assert rows(explain(armed_by_hand(world)), "reboot")["reboot-manual"] is False

    def test_of_a_trial(self, world: World) -> None:
        facts = explain(failing_trial(world))
        assert rows(facts, "update")["booted-not-confirmed"] is False
        assert facts["next"]["code"] == "health-failing"

    def test_of_a_failed_install(self, world: World) -> None:
        facts = explain(cut_install(world))
        assert facts["state"] == "installing"
        assert facts["next"]["code"] == "install-retry"
        assert rows(facts, "update")["download-failed"] is True  # it goes on by itself

    def test_of_a_node_that_nobody_has_looked_at(self, world: World) -> None:
        assert explain(world.boot())["next"]["code"] == "not-looked"


def test_a_permit_that_is_waited_for_is_the_next_step(world: World) -> None:
    if not etcd_programs():
        pytest.skip("no etcd on this machine (package etcd-server)")
    with running_etcd(world.folder / "etcd") as etcd:
        permit = f'[permit]\nkind = "etcd"\nendpoints = ["{etcd.url}"]\n'
        world.write_settings(permit, poll_interval_secs="600")
        fresh = world.boot()  # nothing has made its state folder yet
        assert perform(fresh, "permit-status", {}, by="ada")["max"] is None
        perform(fresh, "permit-set-max", {"places": 0}, by="ada")
        node = armed(world, "permit-closed")
        facts = explain(node)
        assert facts["next"]["code"] == "permit-closed"
        assert rows(facts, "reboot")["permit-closed"] is False
        taken = Engine(node=node).step()
        assert isinstance(taken, Wait)
        assert taken.code == "permit-closed"
        node.permits().close()


def test_the_status_forgets_a_gate_that_has_opened(world: World) -> None:
    node = held(world)
    shown = status(node)["waiting"]
    assert shown["code"] == "held"
    perform(node, "unhold", {}, by="ada")
    assert memory_of(world).waiting_code == "held"  # the service has not looked since
    assert status(node)["waiting"] is None


def test_the_text_shows_every_condition_and_denial(world: World) -> None:
    node = armed_by_hand(world)
    perform(node, "rollback", {}, by="ada")
    facts = explain(node)
    text = "\n".join(lines(facts))
    for row in facts["conditions"]:
        assert f"[{row['code']}]" in text
    assert "refuses 2.0.0: a person took version 2.0.0 back" in text
    assert text.startswith(f"state  {State.IDLE.value}\nnext   wait for the next check, until 20")


def test_what_systemd_boot_starts_before_the_slots_is_told(tmp_path: Path) -> None:
    with World(tmp_path, image_size=512 * 1024, boot_control="systemd-boot") as world:
        node = idle(world)
        assert "loader-default" not in rows(explain(node), "update")
        assert shown.slots(node)[0]["obstacle_code"] is None
        (tmp_path / "boot/loader/loader.conf").write_text("timeout 0\ndefault other.conf\n")
        assert rows(explain(node), "update")["loader-default"] is False
        assert [row["obstacle_code"] for row in shown.slots(node)] == ["loader-default"] * 2
        last = list(shown.slot_lines(shown.slots(node)))[-1]
        assert last == "attention: loader/loader.conf says `default other.conf` [loader-default]"
