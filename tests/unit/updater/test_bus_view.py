"""What the facts of `status` become on the bus."""

from __future__ import annotations

from typing import Any

import pytest

from updater.bus.view import (
    EMPTY,
    PROPERTIES,
    CompatibleStatus,
    changes,
    compatible_status,
    properties,
)
from updater.lifecycle import COMPATIBLE_NAMES, State

AT = "2026-11-20T12:00:00+00:00"
UNIX = 1795176000


def facts(state: State = State.IDLE, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # facts
    return {
        "state": state.value,
        "compatible_state": COMPATIBLE_NAMES[state],
        "booted": {"slot": "a", "version": "1.0.0"},
        "target": "a",
        "confirmed": True,
        "update": None,
        "waiting": None,
        "last_check": {"at": None, "code": "", "sentence": ""},
        "next_check": None,
        "hold": None,
        "pinned": None,
        "last_failure": None,
    } | more


def update(done: int) -> dict[str, Any]:
    return {"version": "2.0.0", "size": 1000, "done": done}


def test_every_property_has_a_value_of_its_type() -> None:
    kinds = {"s": str, "b": bool, "d": float, "x": int}
    for values in (EMPTY, properties(facts(), engine_version="1")):
        assert {name: type(value) for name, value in values.items()} == {
            name: kinds[kind] for name, kind in PROPERTIES.items()
        }


@pytest.mark.parametrize(
    ("state", "done", "share"),
    [(State.INSTALLING, 250, 0.25), (State.VERIFYING, 0, 1.0), (State.ARMED, 1000, 1.0)],
)
def test_progress_is_the_share_that_is_written(state: State, done: int, share: float) -> None:
    told = properties(facts(state, update=update(done)), engine_version="1")
    assert told["Progress"] == share


def test_times_are_unix_seconds() -> None:
    told = properties(
        facts(last_check={"at": AT, "code": "", "sentence": ""}, next_check=AT), engine_version="1"
    )
    assert (told["LastCheck"], told["NextCheck"]) == (UNIX, UNIX)


def test_a_next_check_that_moves_by_a_rounding_is_no_news() -> None:
    before = dict(EMPTY) | {"NextCheck": UNIX}
    assert changes(before, before | {"NextCheck": UNIX + 1}) == {}
    assert changes(before, before | {"NextCheck": UNIX + 60}) == {"NextCheck": UNIX + 60}


def test_only_what_differs_is_news() -> None:
    assert changes(EMPTY, dict(EMPTY) | {"Held": True}) == {"Held": True}


def test_the_time_of_the_last_good_check_stays_when_a_check_fails() -> None:
    good = compatible_status(
        facts(last_check={"at": AT, "code": "nothing-newer", "sentence": ""}), CompatibleStatus()
    )
    assert good.last_checked_time == UNIX
    later = {"at": "2026-11-21T12:00:00+00:00", "code": "unreachable", "sentence": ""}
    assert compatible_status(facts(last_check=later), good).last_checked_time == UNIX


def test_progress_is_told_by_the_percent() -> None:
    def at(done: int) -> CompatibleStatus:
        return compatible_status(facts(State.INSTALLING, update=update(done)), CompatibleStatus())

    assert not at(105).is_news_after(at(100))
    assert at(110).is_news_after(at(100))
    assert not at(100).is_news_after(at(100))
    assert CompatibleStatus().is_news_after(at(5))


def test_an_attempt_that_begins_is_told_as_checking() -> None:
    told = compatible_status(facts(), CompatibleStatus(), begins=True)
    assert told.current_operation == "UPDATE_STATUS_CHECKING_FOR_UPDATE"


def test_the_day_on_which_a_spread_payload_is_whole_is_told() -> None:
    spread = update(10) | {"whole_on": "2026-11-30"}
    assert properties(facts(update=spread), engine_version="1")["UpdateWholeOn"] == "2026-11-30"
    assert properties(facts(update=update(10)), engine_version="1")["UpdateWholeOn"] == ""
