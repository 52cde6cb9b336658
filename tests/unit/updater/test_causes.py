"""Why a trial failed, for every way in which it may have ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import pytest

from partitions.boot.control import BootState, SlotState
from partitions.slots import Slot
from updater.causes import (
    BOOT_FAILED,
    GUARDED,
    RESET,
    RESET_ONCE,
    Evidence,
    cause_of,
)
from updater.conditions import STEPS
from updater.lifecycle import State
from updater.omaha.codes import (
    TRIAL_FELL_BACK,
    TRIAL_SHUT_DOWN,
    EngineError,
    is_failed_trial,
    number_of,
)
from updater.state import Failure, NodeState, Update

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
UPDATE: Final = Update(
    version="2.0.0", rollback_index=2, previous_version="1.0.0", slot="b", began=NOW - HOUR
)
PROVEN: Final = SlotState(armed=True, tries_left=0, confirmed=True)
SPENT: Final = SlotState(armed=False, tries_left=0, confirmed=False)
FRESH: Final = SlotState(armed=True, tries_left=1, confirmed=False)
NOTHING_LEFT: Final = Evidence()
CAME_UP: Final = {"tries_used": 1}
CRASHED: Final = {"tries_used": 2}  # in both of its boots


def cause(
    state: State,
    update: Mapping[str, object],
    *,
    evidence: Evidence = NOTHING_LEFT,
    slot_b: SlotState = SPENT,
    last_failure: Failure | None = None,
) -> Failure:
    node = NodeState(
        state=state,
        boot_id="trial-boot",
        update=msgspec.structs.replace(UPDATE, **update),
        last_failure=last_failure,
    )
    assert node.update is not None
    loader = BootState(target=Slot.A, slots={Slot.A: PROVEN, Slot.B: slot_b})
    return cause_of(node, node.update, loader, evidence, now=NOW)


TABLE: Final = [
    # state, of the update, the guard's last boot, the loader's slot b; the cause
    (State.REBOOTING, {}, "", SPENT, BOOT_FAILED),
    (State.ARMED, {}, "", SPENT, BOOT_FAILED),  # a reboot by hand
    (State.ARMED, {}, "", FRESH, TRIAL_FELL_BACK),
    (State.TRIAL, CAME_UP, "", SPENT, RESET_ONCE),
    (State.TRIAL, CAME_UP, "", FRESH, RESET_ONCE),
    (State.TRIAL, {"tries_used": 2, "tries_given_back": 1}, "", SPENT, RESET_ONCE),
    (State.TRIAL, CRASHED, "", SPENT, RESET),
    (State.TRIAL, {**CAME_UP, "shut_down_in": "trial-boot"}, "", SPENT, TRIAL_SHUT_DOWN),
    (State.TRIAL, {**CAME_UP, "shut_down_in": "boot-before"}, "", SPENT, RESET_ONCE),
    (State.REBOOTING, {}, "some-boot", SPENT, GUARDED),
    (State.TRIAL, CAME_UP, "trial-boot", SPENT, GUARDED),
    # it was guarded in a first boot, came up in a second one and crashed there
    (State.TRIAL, {**CAME_UP, "guarded_in": "first"}, "first", SPENT, RESET),
    # it came up and crashed in a first boot, and was guarded in a second one
    (State.TRIAL, CAME_UP, "second", SPENT, GUARDED),
]


@pytest.mark.parametrize(("state", "update", "guarded_in", "slot_b", "code"), TABLE)
def test_the_cause_is(
    state: State, update: Mapping[str, object], guarded_in: str, slot_b: SlotState, code: str
) -> None:
    found = cause(state, update, evidence=Evidence(guarded_in=guarded_in), slot_b=slot_b)
    assert (found.code, found.version, found.at) == (code, "2.0.0", NOW)
    assert found.sentence.startswith("version 2.0.0 in slot b ")
    assert found.hint


def test_the_guard_tells_a_service_that_never_came_up_from_one_that_gave_no_verdict() -> None:
    guarded = Evidence(guarded_in="trial-boot")
    never = cause(State.REBOOTING, {}, evidence=guarded).sentence
    silent = cause(State.TRIAL, CAME_UP, evidence=guarded).sentence
    assert "never brought its service up; the guard ordered the reboot" in never
    assert "did not end its trial in time; the guard ordered the reboot" in silent


VERDICT: Final = Failure(code="trial-unhealthy", sentence="web", at=NOW - HOUR / 2, version="2.0.0")
STALE: Final = msgspec.structs.replace(VERDICT, at=NOW - 2 * HOUR)
GUARDED_TOO: Final = Evidence(guarded_in="trial-boot")


def test_what_the_trial_said_comes_before_all_that_is_concluded() -> None:
    found = cause(State.REBOOTING, CAME_UP, evidence=GUARDED_TOO, last_failure=VERDICT)
    assert found == VERDICT


def test_a_verdict_that_was_cut_short_after_the_version_was_denied_counts_too() -> None:
    denied = Evidence(guarded_in="trial-boot", denied=VERDICT)
    assert cause(State.TRIAL, CAME_UP, evidence=denied) == VERDICT


@pytest.mark.parametrize(
    "denied",
    [
        STALE,  # of an attempt before this one, which a person forced
        msgspec.structs.replace(VERDICT, code="rolled-back"),
        None,
    ],
)
def test_what_was_said_of_something_else_does_not(denied: Failure | None) -> None:
    assert cause(State.TRIAL, CRASHED, evidence=Evidence(denied=denied)).code == RESET


def test_the_kernels_last_words_are_named_where_they_may_help() -> None:
    evidence = Evidence(kernel_logs=("/var/lib/systemd/pstore/1",))
    for state, update in ((State.REBOOTING, {}), (State.TRIAL, CAME_UP)):
        hint = cause(state, update, evidence=evidence).hint
        assert hint.startswith("The kernel's last words are in /var/lib/systemd/pstore/1. ")
    shut_down = {**CAME_UP, "shut_down_in": "trial-boot"}
    assert "last words" not in cause(State.TRIAL, shut_down, evidence=evidence).hint


@pytest.mark.parametrize("code", [BOOT_FAILED, TRIAL_FELL_BACK, GUARDED, RESET, TRIAL_SHUT_DOWN])
def test_every_cause_is_documented_and_a_rollback_to_every_server(code: str) -> None:
    assert code in STEPS
    assert number_of(code) is EngineError.ROLLBACK


@pytest.mark.parametrize(("state", "update"), [(State.REBOOTING, {}), (State.TRIAL, CAME_UP)])
def test_a_trial_that_ended_without_a_word_may_have_lost_its_power(
    state: State, update: Mapping[str, object]
) -> None:
    assert "a loss of power" in cause(state, update).hint


class TestAReset:
    """One of a version may be a loss of power, at a whole site; it is not refused for that."""

    def reset(self, evidence: Evidence = NOTHING_LEFT, *, versions: tuple[str, ...] = ()) -> str:
        update = msgspec.structs.replace(UPDATE, **CAME_UP)
        node = NodeState(
            state=State.TRIAL, boot_id="trial-boot", update=update, reset_versions=versions
        )
        loader = BootState(target=Slot.A, slots={Slot.A: PROVEN, Slot.B: SPENT})
        return cause_of(node, update, loader, evidence, now=NOW).code

    def test_is_forgiven_once_for_each_version(self) -> None:
        assert self.reset() == self.reset(versions=("1.9.0",)) == RESET_ONCE
        assert self.reset(versions=("1.9.0", "2.0.0")) == RESET

    def test_is_not_forgiven_to_a_kernel_that_left_its_last_words(self) -> None:
        assert self.reset(Evidence(kernel_logs=("/var/lib/systemd/pstore/1",))) == RESET

    def test_is_not_forgiven_to_a_version_that_is_refused_already(self) -> None:
        """A person forced it; who reads that it is tried again would wait in vain."""
        assert self.reset(Evidence(denied=STALE)) == RESET

    def test_that_is_forgiven_is_no_failed_trial_to_a_server(self) -> None:
        """Else it would stop the rollout, and the release would never come here again."""
        assert number_of(RESET_ONCE) != EngineError.ROLLBACK
        assert not is_failed_trial(error_code=number_of(RESET_ONCE), bascule_code=RESET_ONCE)
