from __future__ import annotations

import re
from pathlib import Path

import pytest

from updater.errors import EXIT_REFUSED, IllegalTransitionError
from updater.lifecycle import COMPATIBLE_NAMES, TRANSITIONS, Event, State, diagram, step

DOCUMENT = Path(__file__).parents[3] / "docs" / "lifecycle.md"
# What a boot or a new process may find, whatever was going on before.
ANY_TIME = (Event.RESTARTED, Event.BOOTED_OLD, Event.BOOTED_NEW)


def reachable_from(start: State) -> set[State]:
    seen = {start}
    new = [start]
    while new:
        after = set(TRANSITIONS[new.pop()].values()) - seen
        seen |= after
        new += after
    return seen


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


def test_every_event_moves_something() -> None:
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(Event)


def test_every_state_can_be_reached_from_idle() -> None:
    assert reachable_from(State.IDLE) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_get_back_to_idle(state: State) -> None:
    assert State.IDLE in reachable_from(state)


@pytest.mark.parametrize("state", State)
def test_a_new_process_and_a_boot_are_legal_in_every_state(state: State) -> None:
    for event in ANY_TIME:
        assert step(state, event) in State


@pytest.mark.parametrize("state", State)
def test_a_restart_ends_only_what_a_process_did(state: State) -> None:
    lost_with_the_process = {State.CHECKING: State.IDLE, State.VERIFYING: State.INSTALLING}
    assert step(state, Event.RESTARTED) is lost_with_the_process.get(state, state)


@pytest.mark.parametrize("state", State)
def test_a_boot_of_the_new_slot_is_always_a_trial(state: State) -> None:
    assert step(state, Event.BOOTED_NEW) is State.TRIAL


@pytest.mark.parametrize("state", [state for state in State if state is not State.ARMED])
def test_so_is_a_boot_of_a_slot_that_nobody_verified(state: State) -> None:
    assert step(state, Event.BOOTED_UNVERIFIED) is State.TRIAL


def test_only_a_verified_slot_and_a_rollback_are_armed() -> None:
    """No way leads around the read-back: promise 3."""
    ways = {
        (state, event)
        for state, moves in TRANSITIONS.items()
        for event, after in moves.items()
        if after is State.ARMED and state is not State.ARMED
    }
    assert ways == {
        (State.VERIFYING, Event.VERIFIED),
        (State.IDLE, Event.ROLLBACK_ORDERED),
        (State.REBOOTING, Event.NOT_REBOOTED),
        (State.REBOOTING, Event.BOOTED_UNTRIED),
    }


def test_an_update_reboots_only_from_armed_and_only_permitted() -> None:
    ways = {
        (state, event)
        for state, moves in TRANSITIONS.items()
        for event, after in moves.items()
        if after is State.REBOOTING and state is not State.REBOOTING
    }
    assert ways == {
        (State.ARMED, Event.PERMITTED),
        (State.TRIAL, Event.UNHEALTHY),  # the way back asks nobody
        (State.TRIAL, Event.TOO_LATE),
    }


def test_a_trial_ends_by_health_or_by_going_back() -> None:
    assert step(State.TRIAL, Event.HEALTHY) is State.IDLE
    for event in (Event.UNHEALTHY, Event.TOO_LATE):
        going_back = step(State.TRIAL, event)
        assert step(going_back, Event.BOOTED_OLD) is State.IDLE


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_move_that_is_not_in_the_table_is_refused(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        assert step(state, event) is TRANSITIONS[state][event]
        return
    with pytest.raises(IllegalTransitionError, match=f"'{event.value}' in state '{state.value}'"):
        step(state, event)
    assert IllegalTransitionError.exit_status == EXIT_REFUSED


def test_every_state_has_the_name_that_compatible_clients_know() -> None:
    assert set(COMPATIBLE_NAMES) == set(State)
    assert all(re.fullmatch(r"UPDATE_STATUS_[A-Z_]+", name) for name in COMPATIBLE_NAMES.values())


def test_the_diagram_shows_every_move_once() -> None:
    arrows = re.findall(r"^    (\S+) --> (\S+): (\S+)$", diagram(), re.MULTILINE)
    moves = [
        (state.value, after.value, event.value)
        for state, table in TRANSITIONS.items()
        for event, after in table.items()
    ]
    assert arrows == moves


def test_the_documented_diagram_is_current() -> None:
    blocks = re.findall(r"```mermaid\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert blocks == [diagram()], "print lifecycle.diagram() into docs/lifecycle.md again"


def test_the_document_explains_every_state() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [state.value for state in State]
