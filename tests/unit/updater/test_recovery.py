from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.boot.control import BootState, SlotState
from partitions.slots import Slot
from updater.causes import Evidence
from updater.lifecycle import TRANSITIONS, Event, State
from updater.machine import Boot
from updater.recovery import Recovery, recover
from updater.state import RESETS_MAX, Failure, NodeState, Unverified, Update

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
UPDATE: Final = Update(
    version="2.0.0", rollback_index=2, previous_version="1.0.0", slot="b", began=NOW
)
ROLLBACK: Final = msgspec.structs.replace(UPDATE, rollback=True)
VERIFIED: Final = msgspec.structs.replace(UPDATE, verified=True)
HALF: Final = Unverified(slot="b")
WITHDRAWN: Final = msgspec.structs.replace(UPDATE, withdrawn=True)

PROVEN: Final = SlotState(armed=True, tries_left=0, confirmed=True)
NEVER: Final = SlotState(armed=False, tries_left=0, confirmed=False)  # disarmed, or tries spent
FRESH: Final = SlotState(armed=True, tries_left=1, confirmed=False)

# The loader's memory in the course of an update of a node that runs in slot A.
DISARMED: Final = BootState(target=Slot.A, slots={Slot.A: PROVEN, Slot.B: NEVER})
ARMED: Final = BootState(target=Slot.B, slots={Slot.A: PROVEN, Slot.B: FRESH})
TRIED: Final = DISARMED  # the only try is spent: the loader would go back
CONFIRMED: Final = BootState(target=Slot.B, slots={Slot.A: PROVEN, Slot.B: PROVEN})
BOTH_WHOLE: Final = BootState(target=Slot.A, slots={Slot.A: PROVEN, Slot.B: PROVEN})

# States with an update under way, written in boot-1, in which slot A ran.
UNDER_WAY: Final = (
    State.INSTALLING,
    State.VERIFYING,
    State.ARMED,
    State.REBOOTING,
    State.TRIAL,
)


def memory(state: State, **changes: object) -> NodeState:
    """Return the memory of a node that was in `state` during boot-1."""
    update = UPDATE if state in UNDER_WAY else None
    plain = NodeState(state=state, boot_id="boot-1", update=update, healthy_boot="boot-1")
    return msgspec.structs.replace(plain, **changes)


def found(node: NodeState, loader: BootState, *, slot: Slot, boot_id: str = "boot-2") -> Recovery:
    return recover(node, Boot(slot=slot, boot_id=boot_id), loader, NOW)


def outcome(recovery: Recovery) -> tuple[Event, State, bool]:
    return recovery.event, recovery.node.state, recovery.fallen_back is not None


BLAMED: Final = True
UNBLAMED: Final = False

# what was remembered, what the loader says, which slot runs now; what happened, what follows,
# and whether the version is taken for one that did not hold
AFTER_A_BOOT: Final = [
    (State.IDLE, BOTH_WHOLE, Slot.A, Event.BOOTED_OLD, State.IDLE, UNBLAMED),
    (State.IDLE, BOTH_WHOLE, Slot.B, Event.BOOTED_OLD, State.IDLE, UNBLAMED),
    (State.CHECKING, BOTH_WHOLE, Slot.A, Event.BOOTED_OLD, State.IDLE, UNBLAMED),
    (State.INSTALLING, DISARMED, Slot.A, Event.BOOTED_OLD, State.INSTALLING, UNBLAMED),
    (State.VERIFYING, DISARMED, Slot.A, Event.BOOTED_OLD, State.INSTALLING, UNBLAMED),
    (State.INSTALLING, DISARMED, Slot.B, Event.BOOTED_UNVERIFIED, State.TRIAL, UNBLAMED),
    (State.VERIFYING, DISARMED, Slot.B, Event.BOOTED_UNVERIFIED, State.TRIAL, UNBLAMED),
    (State.VERIFYING, BOTH_WHOLE, Slot.B, Event.BOOTED_UNVERIFIED, State.TRIAL, UNBLAMED),
    (State.ARMED, TRIED, Slot.B, Event.BOOTED_NEW, State.TRIAL, UNBLAMED),
    (State.ARMED, DISARMED, Slot.A, Event.BOOTED_OLD, State.IDLE, BLAMED),
    (State.ARMED, ARMED, Slot.A, Event.BOOTED_UNTRIED, State.ARMED, UNBLAMED),
    (State.REBOOTING, TRIED, Slot.B, Event.BOOTED_NEW, State.TRIAL, UNBLAMED),
    (State.REBOOTING, TRIED, Slot.A, Event.BOOTED_OLD, State.IDLE, BLAMED),
    (State.REBOOTING, ARMED, Slot.A, Event.BOOTED_UNTRIED, State.ARMED, UNBLAMED),
    (State.TRIAL, TRIED, Slot.B, Event.BOOTED_NEW, State.TRIAL, UNBLAMED),
    (State.TRIAL, CONFIRMED, Slot.B, Event.BOOTED_NEW, State.TRIAL, UNBLAMED),
    (State.TRIAL, TRIED, Slot.A, Event.BOOTED_OLD, State.IDLE, BLAMED),
]


@pytest.mark.parametrize(("state", "loader", "slot", "event", "after", "blamed"), AFTER_A_BOOT)
def test_after_a_boot(
    state: State, loader: BootState, slot: Slot, event: Event, after: State, blamed: bool
) -> None:
    assert outcome(found(memory(state), loader, slot=slot)) == (event, after, blamed)


@pytest.mark.parametrize("state", [State.INSTALLING, State.VERIFYING])
@pytest.mark.parametrize("loader", [ARMED, TRIED])
def test_power_that_fails_between_arming_and_noting_it_begins_a_trial(
    state: State, loader: BootState
) -> None:
    recovery = found(memory(state, update=VERIFIED), loader, slot=Slot.B)
    assert outcome(recovery) == (Event.BOOTED_NEW, State.TRIAL, UNBLAMED)
    assert recovery.node.update == msgspec.structs.replace(VERIFIED, tries_used=1)


class TestASlotThatNobodyVerified:
    """Somebody's boot menu, or the firmware's own order, starts what an install began to write."""

    @pytest.mark.parametrize("state", [State.IDLE, State.CHECKING, State.INSTALLING])
    @pytest.mark.parametrize("loader", [DISARMED, BOTH_WHOLE])
    def test_is_noted_whatever_the_loader_says_and_no_version_is_blamed(
        self, state: State, loader: BootState
    ) -> None:
        recovery = found(memory(state, unverified=HALF), loader, slot=Slot.B)
        assert outcome(recovery) == (Event.BOOTED_UNVERIFIED, State.TRIAL, UNBLAMED)
        assert recovery.node.update is None
        once = Unverified(slot="b", booted_in="boot-2", boots=1)
        assert recovery.node.unverified == once

    def test_ends_by_the_boot_of_the_other_one_and_stays_unverified(self) -> None:
        there = found(memory(State.INSTALLING, unverified=HALF), DISARMED, slot=Slot.B).node
        leaving = msgspec.structs.replace(there, state=State.REBOOTING)
        recovery = found(leaving, DISARMED, slot=Slot.A, boot_id="boot-3")
        assert outcome(recovery) == (Event.BOOTED_OLD, State.IDLE, UNBLAMED)
        assert recovery.node.unverified == there.unverified

    @pytest.mark.parametrize("state", [State.TRIAL, State.REBOOTING])
    def test_is_counted_each_time_it_boots(self, state: State) -> None:
        there = found(memory(State.VERIFYING, unverified=HALF), BOTH_WHOLE, slot=Slot.B).node
        leaving = msgspec.structs.replace(there, state=state)
        recovery = found(leaving, BOTH_WHOLE, slot=Slot.B, boot_id="boot-3")
        assert outcome(recovery) == (Event.BOOTED_UNVERIFIED, State.TRIAL, UNBLAMED)
        twice = Unverified(slot="b", booted_in="boot-3", boots=2)
        assert recovery.node.unverified == twice

    def test_is_another_thing_than_an_old_system_that_is_to_be_written_over(self) -> None:
        """Somebody chose it, and nothing was written yet: it stays, and the update ends."""
        recovery = found(memory(State.INSTALLING), BOTH_WHOLE, slot=Slot.B)
        assert outcome(recovery) == (Event.CANCELLED, State.IDLE, UNBLAMED)
        assert recovery.node.update is None

    def test_does_not_matter_while_the_other_one_runs(self) -> None:
        recovery = found(memory(State.IDLE, unverified=HALF), BOTH_WHOLE, slot=Slot.A)
        assert outcome(recovery) == (Event.BOOTED_OLD, State.IDLE, UNBLAMED)
        assert recovery.node.unverified == HALF


@pytest.mark.parametrize("state", [State.INSTALLING, State.VERIFYING])
def test_a_process_killed_between_arming_and_noting_it_verifies_anew(state: State) -> None:
    recovery = found(memory(state), ARMED, slot=Slot.A, boot_id="boot-1")
    assert outcome(recovery) == (Event.RESTARTED, State.INSTALLING, UNBLAMED)
    assert recovery.node.update == UPDATE


@pytest.mark.parametrize("state", State)
def test_a_new_process_keeps_what_the_boot_has_shown(state: State) -> None:
    node = memory(state, reboot_ordered=True)
    loader = ARMED if state is State.ARMED else BOTH_WHOLE
    recovery = found(node, loader, slot=Slot.A, boot_id="boot-1")
    assert recovery.event is Event.RESTARTED
    assert recovery.node.healthy_boot == "boot-1"
    assert recovery.node.reboot_ordered


@pytest.mark.parametrize("state", State)
def test_a_boot_has_to_show_its_health_anew_and_needs_a_new_order(state: State) -> None:
    node = memory(state, reboot_ordered=True, waiting_code="permit-full", waiting_sentence="full")
    recovery = found(node, BOTH_WHOLE, slot=Slot.A)
    after = recovery.node
    assert (after.boot_id, after.healthy_boot, after.reboot_ordered) == ("boot-2", "", False)
    assert (after.waiting_code, after.waiting_sentence) == ("", "")


@pytest.mark.parametrize("permit", ["none", "held", "unknown"])
@pytest.mark.parametrize("slot", Slot)
def test_a_boot_changes_nothing_about_the_permit(permit: str, slot: Slot) -> None:
    recovery = found(memory(State.REBOOTING, permit=permit), TRIED, slot=slot)
    assert recovery.node.permit == permit


def test_every_boot_of_the_new_slot_counts() -> None:
    first = found(memory(State.REBOOTING), ARMED, slot=Slot.B)
    second = found(first.node, ARMED, slot=Slot.B, boot_id="boot-3")
    assert second.node.update is not None
    assert second.node.update.tries_used == 2


def test_a_fall_back_without_a_verdict_says_how_far_it_came() -> None:
    recovery = found(memory(State.TRIAL), TRIED, slot=Slot.A)
    assert recovery.fallen_back is not None
    update, failure = recovery.fallen_back
    assert update == UPDATE
    assert (failure.code, failure.version, failure.at) == ("reset-once", "2.0.0", NOW)
    assert "ended without an orderly shutdown" in failure.sentence
    assert recovery.node.last_failure == failure
    assert recovery.node.update is None


def test_a_reset_of_a_trial_is_remembered_and_the_second_one_is_a_failed_trial() -> None:
    """After the first one the version is asked for anew, soon."""
    later = NOW.replace(year=2027)
    first = found(memory(State.TRIAL, next_check=later, checks_failed=3), TRIED, slot=Slot.A).node
    assert first.reset_versions == ("2.0.0",)
    assert (first.next_check, first.checks_failed) == (None, 0)
    again = msgspec.structs.replace(first, state=State.TRIAL, update=UPDATE, last_failure=None)
    second = found(again, TRIED, slot=Slot.A, boot_id="boot-3")
    assert second.fallen_back is not None
    assert second.fallen_back[1].code == "trial-reset"
    assert second.node.reset_versions == ("2.0.0",)


def test_only_so_many_resets_are_remembered() -> None:
    many = tuple(f"1.{number}.0" for number in range(RESETS_MAX))
    after = found(memory(State.TRIAL, reset_versions=many), TRIED, slot=Slot.A).node
    assert after.reset_versions == (*many[1:], "2.0.0")


def test_a_boot_of_the_new_slot_notes_what_the_guard_had_done_before_it() -> None:
    """So that the guard is not blamed for how this boot ends."""
    boot = Boot(slot=Slot.B, boot_id="boot-2")
    guarded = Evidence(guarded_in="boot-1b")
    second = recover(memory(State.REBOOTING), boot, TRIED, NOW, guarded).node
    back = Boot(slot=Slot.A, boot_id="boot-3")
    blamed = recover(second, back, TRIED, NOW, guarded).fallen_back
    assert blamed is not None
    assert blamed[1].code == "trial-reset"
    again = recover(second, back, TRIED, NOW, Evidence(guarded_in="boot-2")).fallen_back
    assert again is not None
    assert again[1].code == "trial-guarded"


def test_a_fall_back_keeps_the_verdict_that_the_trial_gave() -> None:
    verdict = Failure(code="trial-unhealthy", sentence="check web", at=NOW, version="2.0.0")
    recovery = found(memory(State.REBOOTING, last_failure=verdict), TRIED, slot=Slot.A)
    assert recovery.fallen_back == (UPDATE, verdict)


@pytest.mark.parametrize(
    "verdict",
    [
        Failure(code="trial-unhealthy", sentence="of another", at=NOW, version="1.9.0"),
        Failure(code="download-failed", sentence="not of a trial", at=NOW, version="2.0.0"),
    ],
)
def test_a_fall_back_does_not_borrow_the_reason_of_something_else(verdict: Failure) -> None:
    recovery = found(memory(State.REBOOTING, last_failure=verdict), TRIED, slot=Slot.A)
    assert recovery.fallen_back is not None
    assert recovery.fallen_back[1].code == "trial-boot-failed"


class TestWithdrawing:
    """A newer release or a person replaces the armed one: noted, disarmed, noted."""

    def test_power_that_fails_after_the_slot_was_disarmed_blames_nobody(self) -> None:
        recovery = found(memory(State.ARMED, update=WITHDRAWN), DISARMED, slot=Slot.A)
        assert outcome(recovery) == (Event.BOOTED_OLD, State.IDLE, UNBLAMED)
        assert recovery.node.update is None
        assert recovery.node.last_failure is None

    def test_power_that_fails_before_it_was_disarmed_is_a_trial_like_any_other(self) -> None:
        recovery = found(memory(State.ARMED, update=WITHDRAWN), ARMED, slot=Slot.B)
        assert recovery.node.state is State.TRIAL
        assert recovery.node.update is not None
        assert not recovery.node.update.withdrawn
        assert found(recovery.node, TRIED, slot=Slot.A, boot_id="boot-3").fallen_back is not None

    def test_a_process_killed_after_it_disarmed_is_idle_again(self) -> None:
        node = memory(State.ARMED, update=WITHDRAWN)
        recovery = found(node, DISARMED, slot=Slot.A, boot_id="boot-1")
        assert outcome(recovery) == (Event.CANCELLED, State.IDLE, UNBLAMED)
        assert recovery.node.update is None

    def test_a_process_killed_before_it_disarmed_is_still_armed(self) -> None:
        node = memory(State.ARMED, update=WITHDRAWN)
        recovery = found(node, ARMED, slot=Slot.A, boot_id="boot-1")
        assert outcome(recovery) == (Event.RESTARTED, State.ARMED, UNBLAMED)
        assert recovery.node.update == UPDATE

    def test_an_armed_slot_that_is_no_target_is_installed_anew(self) -> None:
        """Rebooting for it would end in the old system and blame the version."""
        recovery = found(memory(State.ARMED), DISARMED, slot=Slot.A, boot_id="boot-1")
        assert outcome(recovery) == (Event.SUPERSEDED, State.INSTALLING, UNBLAMED)
        assert recovery.node.update == UPDATE

    def test_a_rollback_that_is_no_target_is_given_up(self) -> None:
        node = memory(State.ARMED, update=ROLLBACK)
        recovery = found(node, BOTH_WHOLE, slot=Slot.A, boot_id="boot-1")
        assert outcome(recovery) == (Event.CANCELLED, State.IDLE, UNBLAMED)


class TestLostMemory:
    """The state folder is gone or damaged: `NodeState()` is what is left."""

    def test_in_a_confirmed_slot_the_node_is_idle(self) -> None:
        recovery = found(NodeState(), BOTH_WHOLE, slot=Slot.A)
        assert outcome(recovery) == (Event.BOOTED_OLD, State.IDLE, UNBLAMED)

    @pytest.mark.parametrize("loader", [ARMED, TRIED])
    def test_in_a_slot_that_is_not_confirmed_the_node_is_on_trial(self, loader: BootState) -> None:
        recovery = found(NodeState(), loader, slot=Slot.B)
        assert outcome(recovery) == (Event.BOOTED_NEW, State.TRIAL, UNBLAMED)

    def test_a_second_boot_of_that_slot_is_on_trial_again(self) -> None:
        first = found(NodeState(), ARMED, slot=Slot.B).node
        second = found(first, TRIED, slot=Slot.B, boot_id="boot-3")
        assert outcome(second) == (Event.BOOTED_NEW, State.TRIAL, UNBLAMED)

    def test_a_boot_of_the_old_slot_ends_that_trial(self) -> None:
        first = found(NodeState(), ARMED, slot=Slot.B).node
        second = found(first, TRIED, slot=Slot.A, boot_id="boot-3")
        assert outcome(second) == (Event.BOOTED_OLD, State.IDLE, UNBLAMED)

    def test_whether_a_permit_is_held_is_unknown(self) -> None:
        assert found(NodeState(), BOTH_WHOLE, slot=Slot.A).node.permit == "unknown"


# What follows holds for whatever a process may find.

slot_states = st.builds(
    SlotState,
    armed=st.booleans(),
    tries_left=st.integers(min_value=0, max_value=15),
    confirmed=st.booleans(),
)
loaders = st.builds(
    BootState,
    target=st.none() | st.sampled_from(Slot),
    slots=st.fixed_dictionaries({Slot.A: slot_states, Slot.B: slot_states}),
)
updates = st.builds(
    lambda changes: msgspec.structs.replace(UPDATE, **changes),
    st.fixed_dictionaries(
        {
            "slot": st.sampled_from(["a", "b"]),
            "rollback": st.booleans(),
            "withdrawn": st.booleans(),
            "verified": st.booleans(),
            "tries_used": st.integers(min_value=0, max_value=15),
        }
    ),
)
verdicts = st.builds(
    Failure,
    code=st.sampled_from(["trial-unhealthy", "trial-too-late", "download-failed"]),
    sentence=st.just("why"),
    at=st.just(NOW),
    version=st.sampled_from(["", "1.0.0", "2.0.0"]),
)
memories = st.builds(
    NodeState,
    state=st.sampled_from(State),
    boot_id=st.sampled_from(["", "boot-1", "boot-2"]),
    update=st.none() | updates,
    unverified=st.none() | st.builds(Unverified, slot=st.sampled_from(["a", "b"])),
    permit=st.sampled_from(["none", "held", "unknown"]),
    reboot_ordered=st.booleans(),
    healthy_boot=st.sampled_from(["", "boot-1", "boot-2"]),
    last_failure=st.none() | verdicts,
)
UNTIMED: Final = settings(deadline=None, max_examples=300)


@UNTIMED
@given(memories, loaders, st.sampled_from(Slot))
def test_whatever_is_found_is_one_legal_move(
    node: NodeState, loader: BootState, slot: Slot
) -> None:
    recovery = found(node, loader, slot=slot)
    assert recovery.node.state is TRANSITIONS[node.state][recovery.event]
    assert recovery.node.boot_id == "boot-2"


@UNTIMED
@given(memories, loaders, st.sampled_from(Slot))
def test_recovering_twice_changes_nothing_more(
    node: NodeState, loader: BootState, slot: Slot
) -> None:
    """A process may be killed right after it wrote what it found."""
    once = found(node, loader, slot=slot).node
    again = found(once, loader, slot=slot)
    assert again.fallen_back is None
    if not (once.state is State.ARMED and again.event is not Event.RESTARTED):
        assert again.node == once


@UNTIMED
@given(memories, loaders, st.sampled_from(Slot))
def test_only_a_version_that_was_chosen_and_did_not_come_up_is_blamed(
    node: NodeState, loader: BootState, slot: Slot
) -> None:
    recovery = found(node, loader, slot=slot)
    if recovery.fallen_back is None:
        return
    update, failure = recovery.fallen_back
    assert node.update == update
    assert not update.withdrawn
    assert update.slot != slot.value
    assert node.state in {State.ARMED, State.REBOOTING, State.TRIAL}
    assert recovery.node.state is State.IDLE
    assert recovery.node.update is None
    assert failure.version == update.version
    assert failure.code.startswith("trial-") or failure.code == "reset-once"


@UNTIMED
@given(memories, loaders, st.sampled_from(Slot))
def test_an_update_is_never_forgotten_while_it_is_under_way(
    node: NodeState, loader: BootState, slot: Slot
) -> None:
    """Or nobody could say what INSTALLING, VERIFYING and ARMED are about."""
    if node.update is None or node.state not in UNDER_WAY:
        return
    recovery = found(node, loader, slot=slot)
    over = recovery.node.state is State.IDLE or recovery.event is Event.BOOTED_UNVERIFIED
    assert (recovery.node.update is None) == over


@UNTIMED
@given(memories, loaders, st.sampled_from(Slot))
def test_a_slot_that_an_install_began_to_write_is_on_no_common_trial_before_it_is_armed(
    node: NodeState, loader: BootState, slot: Slot
) -> None:
    """The trial of one that may be half an image is marked as such, and so never confirmed."""
    node = msgspec.structs.replace(node, boot_id="boot-1")
    writing = node.state in {State.INSTALLING, State.VERIFYING}
    begun = node.unverified is not None and node.unverified.slot == slot.value
    update = node.update
    whole = writing and update is not None and update.verified and update.slot == slot.value
    if begun and not whole and (writing or node.state in {State.IDLE, State.CHECKING}):
        after = found(node, loader, slot=slot).node
        assert after.state is State.TRIAL
        assert after.unverified is not None
        assert after.unverified.booted_in == after.boot_id


EXPECTED_BY_SLOT: Final[Mapping[bool, State]] = {True: State.IDLE, False: State.TRIAL}


@UNTIMED
@given(loaders, st.sampled_from(Slot))
def test_without_a_memory_the_loader_tells_trial_from_idle(loader: BootState, slot: Slot) -> None:
    recovery = found(NodeState(), loader, slot=slot)
    assert recovery.node.state is EXPECTED_BY_SLOT[loader.slots[slot].confirmed]
