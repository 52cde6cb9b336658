from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updater import agent
from updater.agent import (
    Check,
    Confirm,
    Examine,
    FallBack,
    Install,
    Reboot,
    ReturnPermit,
    TakePermit,
    View,
    Wait,
    decide,
)
from updater.gates import GateVerdict
from updater.gates.window import WindowGate
from updater.lifecycle import State
from updater.settings import WindowSettings
from updater.state import NodeState, Unverified, Update
from updater.windows import read_windows

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
LATE: Final = timedelta(minutes=5)  # uptime at which a trial should have shown its health
SECOND: Final = timedelta(seconds=1)
OPEN: Final = GateVerdict(code="reboot-automatic", sentence="open", is_open=True)
CLOSED: Final = GateVerdict(code="reboot-manual", sentence="closed", is_open=False)
LATER: Final = GateVerdict(
    code="window-closed", sentence="closed for an hour", is_open=False, opens_at=NOW + HOUR
)
UPDATE: Final = Update(
    version="2.0.0", rollback_index=2, previous_version="1.0.0", slot="b", began=NOW - HOUR
)
ROLLBACK: Final = msgspec.structs.replace(UPDATE, rollback=True)
NOT_DUE: Final[Mapping[str, object]] = {"next_check": NOW + HOUR}
DUE: Final[Mapping[str, object]] = {"next_check": NOW - SECOND}


PLAIN: Final = View(
    node=NodeState(boot_id="boot-2", permit="none", next_check=NOW + HOUR),
    boot_id="boot-2",
    uptime=timedelta(minutes=2),
    checks_automatic=True,
    first_check=timedelta(0),
    longest_pause=timedelta(days=1),
    gates=(OPEN,),
    trial_deadline=LATE,
    can_fall_back=True,
    booted_confirmed=False,
    health_interval=5 * SECOND,
)


def answer(state: State, node: Mapping[str, object], **view: object) -> agent.Action:
    """Return what a plain node in `state` does, but for the given changes."""
    update = None if state in {State.IDLE, State.CHECKING} else UPDATE
    memory = msgspec.structs.replace(PLAIN.node, state=state, **{"update": update} | dict(node))
    return decide(replace(PLAIN, **{"node": memory} | view), NOW)  # type: ignore[arg-type]  # as named


HEALTHY: Final = {"healthy_boot": "boot-2"}
SEEN: Final = {"last_examined": timedelta(minutes=1)}
STEADY: Final = {"healthy_since": timedelta(minutes=1), "steady": timedelta(minutes=1)}

HALF: Final = Unverified(slot="b", booted_in="boot-2", boots=1)
HALF_AGAIN: Final = Unverified(slot="b", booted_in="boot-2", boots=2)
OTHER_HALF: Final = Unverified(slot="a")

TABLE: Final = [
    # state, memory, view, what is done
    (State.IDLE, NOT_DUE, {}, Wait),
    (State.IDLE, DUE, {}, Check),
    (State.IDLE, {"next_check": None}, {}, Check),
    (State.IDLE, DUE, {"checks_automatic": False}, Wait),
    (State.IDLE, {"permit": "held", **HEALTHY}, {}, ReturnPermit),
    (State.IDLE, {"permit": "unknown", **HEALTHY}, {}, ReturnPermit),
    (State.IDLE, {"permit": "held", "healthy_boot": "boot-1"}, {}, Examine),
    (State.CHECKING, DUE, {}, Check),
    (State.INSTALLING, {}, {}, Install),
    (State.INSTALLING, {"checks_failed": 1}, {}, Wait),
    (State.INSTALLING, {"checks_failed": 1, **DUE}, {}, Install),
    (State.INSTALLING, {"checks_failed": 1, "next_check": None}, {}, Install),
    (State.VERIFYING, {}, {}, Install),
    (State.ARMED, {}, {}, TakePermit),
    (State.ARMED, DUE, {}, Check),
    (State.ARMED, {"permit": "unknown"}, {}, TakePermit),
    (State.ARMED, {"permit": "held"}, {}, Reboot),
    (State.ARMED, {"permit": "held", **DUE}, {}, Reboot),
    (State.ARMED, {}, {"gates": (CLOSED,)}, Wait),
    (State.ARMED, {}, {"gates": (OPEN, CLOSED)}, Wait),
    (State.ARMED, DUE, {"gates": (CLOSED,)}, Check),
    (State.ARMED, {"permit": "held", **HEALTHY}, {"gates": (CLOSED,)}, ReturnPermit),
    (State.ARMED, {"permit": "held"}, {"gates": (CLOSED,)}, Examine),
    (State.ARMED, {"update": ROLLBACK, **DUE}, {}, TakePermit),
    (State.ARMED, {"update": ROLLBACK, **DUE}, {"gates": (CLOSED,)}, Wait),
    (State.REBOOTING, {}, {}, Reboot),
    (State.TRIAL, {}, {}, Examine),
    (State.TRIAL, {}, {"last_examined": timedelta(minutes=2)}, Wait),
    (State.TRIAL, {}, {"uptime": LATE, **SEEN}, FallBack),
    (State.TRIAL, {}, {"uptime": LATE}, Examine),
    (State.TRIAL, {}, {"uptime": LATE, "can_fall_back": False, **SEEN}, Examine),
    (State.TRIAL, {}, {"uptime": timedelta(hours=5), "booted_confirmed": True, **SEEN}, Confirm),
    (State.TRIAL, {}, {"healthy_since": timedelta(minutes=1), **SEEN}, Confirm),
    (State.TRIAL, {}, {**STEADY, "last_examined": timedelta(seconds=119)}, Wait),
    (State.TRIAL, {}, {**STEADY, "last_examined": timedelta(seconds=115)}, Examine),
    (State.TRIAL, {}, {**STEADY, "last_examined": timedelta(seconds=120)}, Confirm),
    (State.TRIAL, {}, {**STEADY, "last_examined": 2 * LATE, "uptime": 2 * LATE}, Confirm),
    (State.TRIAL, {}, {**STEADY, "last_examined": LATE, "steady": LATE, "uptime": LATE}, Wait),
    (State.INSTALLING, {"permit": "held", **HEALTHY}, {}, ReturnPermit),
    (State.INSTALLING, {"permit": "held"}, {"last_examined": timedelta(minutes=2)}, Install),
    (State.ARMED, {}, {"reboot_retry_at": timedelta(minutes=3)}, Wait),
    (State.ARMED, {"permit": "held", **HEALTHY}, {"reboot_retry_at": LATE}, ReturnPermit),
    (State.ARMED, {"permit": "held"}, {"reboot_retry_at": timedelta(minutes=2)}, Reboot),
    (State.TRIAL, {"update": None}, {"uptime": timedelta(days=1)}, Examine),
    # what nobody verified is left at once, but once only, and confirmed by nobody
    (State.TRIAL, {"update": None, "unverified": HALF}, {}, FallBack),
    (State.TRIAL, {"update": None, "unverified": HALF}, {"booted_confirmed": True}, FallBack),
    (State.TRIAL, {"update": None, "unverified": HALF}, {"can_fall_back": False}, Wait),
    (State.TRIAL, {"update": None, "unverified": HALF_AGAIN}, {"booted_confirmed": True}, Wait),
    (State.TRIAL, {"update": None, "unverified": HALF_AGAIN}, {**SEEN, **STEADY}, Wait),
    (State.TRIAL, {"unverified": OTHER_HALF}, {"booted_confirmed": True}, Confirm),
]


@pytest.mark.parametrize(("state", "node", "view", "expected"), TABLE)
def test_the_next_action_is(
    state: State,
    node: Mapping[str, object],
    view: Mapping[str, object],
    expected: type[agent.Action],
) -> None:
    assert type(answer(state, node, **view)) is expected


def test_a_wait_says_why_and_until_when() -> None:
    waiting = answer(State.ARMED, {}, gates=(OPEN, LATER))
    assert waiting == Wait(until=NOW + HOUR, code="window-closed", sentence="closed for an hour")


def test_a_wait_ends_when_the_next_check_is_due() -> None:
    waiting = answer(State.ARMED, {"next_check": NOW + SECOND}, gates=(LATER,))
    assert waiting == Wait(until=NOW + SECOND, code="window-closed", sentence="closed for an hour")


def test_without_automatic_checks_an_idle_node_waits_for_something_to_happen() -> None:
    waiting = answer(State.IDLE, DUE, checks_automatic=False)
    assert waiting == Wait(until=None, code="idle", sentence="nothing newer is wanted")


def test_the_first_check_of_a_boot_waits_for_its_time() -> None:
    waiting = answer(State.IDLE, DUE, uptime=60 * SECOND, first_check=420 * SECOND)
    assert isinstance(waiting, Wait)
    assert waiting.until == NOW + 360 * SECOND
    assert answer(State.IDLE, DUE, uptime=420 * SECOND, first_check=420 * SECOND) == Check()


@pytest.mark.parametrize("state", [State.IDLE, State.ARMED])
def test_a_due_time_of_a_clock_that_was_wrong_is_not_waited_for(state: State) -> None:
    """A node that booted in 2040 for a minute must not fall silent until then."""
    assert answer(state, {"next_check": NOW + timedelta(days=5000)}) == Check()


def test_a_retry_time_of_a_clock_that_was_wrong_is_not_waited_for() -> None:
    node = {"checks_failed": 3, "next_check": NOW + timedelta(days=5000)}
    assert answer(State.INSTALLING, node) == Install()


def test_a_permit_that_could_not_be_returned_is_tried_again_later() -> None:
    node = {"permit": "held", **HEALTHY}
    waiting = answer(State.IDLE, node, return_retry_at=timedelta(seconds=130))
    assert isinstance(waiting, Wait)
    assert (waiting.code, waiting.until) == ("permit-owed", NOW + 10 * SECOND)
    assert answer(State.IDLE, node, return_retry_at=timedelta(seconds=120)) == ReturnPermit()


def test_health_is_looked_at_again_after_the_interval() -> None:
    waiting = answer(State.TRIAL, {}, last_examined=timedelta(seconds=118))
    assert isinstance(waiting, Wait)
    assert (waiting.code, waiting.until) == ("health-pending", NOW + 3 * SECOND)
    assert answer(State.TRIAL, {}, last_examined=timedelta(seconds=115)) == Examine()


# What follows holds for every view at all.

times = st.integers(min_value=0, max_value=7 * 10**9).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC)
)
uptimes = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400))
gate_rows = st.lists(st.sampled_from([OPEN, CLOSED, LATER]), max_size=3)
updates = st.none() | st.builds(
    lambda forced, rollback: msgspec.structs.replace(UPDATE, forced=forced, rollback=rollback),
    st.booleans(),
    st.booleans(),
)
UNTIMED: Final = settings(deadline=None)  # a busy machine is no failure


def views(*states: State) -> st.SearchStrategy[View]:
    """Return views of all kinds, of nodes in `states` (any by default)."""
    node = st.builds(
        NodeState,
        state=st.sampled_from(states or tuple(State)),
        boot_id=st.sampled_from(["boot-1", "boot-2"]),
        update=updates,
        permit=st.sampled_from(["none", "held", "unknown"]),
        healthy_boot=st.sampled_from(["", "boot-1", "boot-2"]),
        next_check=st.none() | times,
        checks_failed=st.integers(min_value=0, max_value=20),
        reboot_ordered=st.booleans(),
    )
    return st.builds(
        View,
        node=node,
        boot_id=st.sampled_from(["boot-1", "boot-2"]),
        uptime=uptimes,
        checks_automatic=st.booleans(),
        first_check=st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=1)),
        longest_pause=st.just(timedelta(days=1)),
        gates=gate_rows,
        trial_deadline=st.timedeltas(min_value=SECOND, max_value=timedelta(hours=1)),
        can_fall_back=st.booleans(),
        booted_confirmed=st.booleans(),
        health_interval=st.timedeltas(min_value=SECOND / 10, max_value=HOUR),
        last_examined=st.none() | uptimes,
        healthy_since=st.none() | uptimes,
        steady=st.timedeltas(min_value=timedelta(0), max_value=timedelta(minutes=10)),
        return_retry_at=st.none() | uptimes,
        reboot_retry_at=st.none() | uptimes,
    )


@UNTIMED
@given(views(), times)
def test_the_same_view_and_time_give_the_same_answer(view: View, now: datetime) -> None:
    assert decide(view, now) == decide(view, now)


@UNTIMED
@given(views(State.ARMED, State.TRIAL, State.IDLE), times)
def test_no_reboot_is_decided_without_open_gates_and_a_permit(view: View, now: datetime) -> None:
    """REBOOTING goes on with what was decided; the engine asks for the permit again there."""
    if decide(view, now) == Reboot():
        assert view.node.state is State.ARMED
        assert view.node.permit == "held"
        assert all(gate.is_open for gate in view.gates)


@UNTIMED
@given(views(State.ARMED), times)
def test_a_permit_is_asked_for_only_when_it_could_be_used_at_once(
    view: View, now: datetime
) -> None:
    if decide(view, now) == TakePermit():
        assert view.node.state is State.ARMED
        assert all(gate.is_open for gate in view.gates)


@UNTIMED
@given(
    views(State.ARMED),
    st.integers(min_value=0, max_value=14 * 1440).map(lambda minutes: NOW + minutes * SECOND * 60),
)
def test_windows_are_obeyed_wherever_the_clock_jumps(view: View, now: datetime) -> None:
    """Only the time that the clock shows now counts; the wait ends when the window opens."""
    row = WindowSettings(start="Tue,Sat 23:00", length="2h30m")
    gate = WindowGate(read_windows([row], local=UTC))
    hour = now.weekday() * 24 + now.hour + now.minute / 60  # of the week
    inside = any(begin <= hour < begin + 2.5 for begin in (1 * 24 + 23, 5 * 24 + 23))
    view = replace(view, gates=(gate.verdict(now),), checks_automatic=False)
    action = decide(view, now)
    assert inside or action not in {Reboot(), TakePermit()}
    if not inside and view.node.permit == "none":
        assert isinstance(action, Wait)
        assert action.until is not None
        assert gate.verdict(action.until).is_open
        assert not gate.verdict(action.until - SECOND).is_open


@UNTIMED
@given(views(State.TRIAL, State.REBOOTING, State.INSTALLING, State.VERIFYING, State.IDLE), times)
def test_no_gate_keeps_a_node_from_anything_but_rebooting_what_is_armed(
    view: View, now: datetime
) -> None:
    """Least of all from going back: a trial that failed does not wait for a window."""
    actions = {decide(replace(view, gates=gates), now) for gates in ((OPEN,), (CLOSED,), (LATER,))}
    assert len(actions) == 1


@UNTIMED
@given(views(State.TRIAL), times)
def test_no_trial_outlives_its_deadline(view: View, now: datetime) -> None:
    """But a system that is confirmed already, healthy now, or not looked at, is not thrown out."""
    unwell = view.last_examined is not None and view.healthy_since is None
    late = view.uptime >= view.trial_deadline and unwell
    can_end = view.node.update is not None and view.can_fall_back and not view.booted_confirmed
    assert (decide(view, now) == FallBack()) == (late and can_end)


@UNTIMED
@given(views(State.TRIAL), times, st.lists(st.booleans(), max_size=40))
def test_a_trial_is_confirmed_only_after_it_was_healthy_at_every_look_for_long_enough(
    view: View, now: datetime, looks: list[bool]
) -> None:
    """Played as the engine does: look, note, decide again; whatever the looks find."""
    node = msgspec.structs.replace(view.node, update=UPDATE)
    view = replace(view, node=node, can_fall_back=True, booted_confirmed=False)
    view = replace(view, uptime=timedelta(0), last_examined=None, healthy_since=None)
    found: list[tuple[timedelta, bool]] = []
    for healthy in looks:
        action = decide(view, now)
        if not isinstance(action, Examine):
            break
        found.append((view.uptime, healthy))
        since = (
            (view.healthy_since if view.healthy_since is not None else view.uptime)
            if healthy
            else None
        )
        view = replace(view, last_examined=view.uptime, healthy_since=since)
        action = decide(view, now)
        if not isinstance(action, Wait):
            break
        view = replace(view, uptime=view.uptime + view.health_interval)
    if isinstance(decide(view, now), Confirm):
        last = found[-1][0]
        steady = [at for at, _ in found if last - at <= view.steady]
        assert all(healthy for at, healthy in found if at in steady)
        bad = [at for at, healthy in found if not healthy]
        good = [at for at, _ in found if not bad or at > bad[-1]]
        assert last - good[0] >= view.steady
    if isinstance(decide(view, now), FallBack):
        assert not found[-1][1]
        assert view.uptime >= view.trial_deadline


@UNTIMED
@given(views(State.TRIAL), times)
def test_a_late_trial_is_looked_at_once_and_then_goes_back(view: View, now: datetime) -> None:
    node = msgspec.structs.replace(view.node, update=UPDATE)
    uptime = view.trial_deadline + view.uptime
    view = replace(view, node=node, uptime=uptime, can_fall_back=True, booted_confirmed=False)
    view = replace(view, healthy_since=None)
    action = decide(view, now)
    if isinstance(action, Examine):
        assert view.last_examined is None
        action = decide(replace(view, last_examined=view.uptime), now)
    assert action == FallBack()


@UNTIMED
@given(views(), times)
def test_only_a_trial_goes_back(view: View, now: datetime) -> None:
    if decide(view, now) == FallBack():
        assert view.node.state is State.TRIAL


@UNTIMED
@given(views(State.TRIAL), times)
def test_a_trial_never_waits_longer_than_the_health_interval(view: View, now: datetime) -> None:
    if isinstance(action := decide(view, now), Wait):
        assert action.until is not None
        assert action.until - now <= view.health_interval + max(
            timedelta(0), (view.last_examined or view.uptime) - view.uptime
        )


@UNTIMED
@given(views(State.IDLE), times)
def test_owing_a_permit_never_keeps_a_node_from_checking(view: View, now: datetime) -> None:
    """What comes instead is done at once; once it is, the check is next."""
    node = msgspec.structs.replace(view.node, next_check=None)
    view = replace(view, node=node, checks_automatic=True, first_check=timedelta(0))
    action = decide(view, now)
    if isinstance(action, Examine):
        view = replace(view, last_examined=view.uptime)
    elif isinstance(action, ReturnPermit):
        view = replace(view, return_retry_at=view.uptime + SECOND)
    assert decide(view, now) == Check()


@UNTIMED
@given(views(State.IDLE, State.ARMED), times)
def test_a_permit_is_returned_only_by_a_boot_that_showed_its_health(
    view: View, now: datetime
) -> None:
    if decide(view, now) == ReturnPermit():
        assert view.node.permit != "none"
        assert view.node.healthy_boot == view.boot_id


@UNTIMED
@given(views(), times)
def test_a_check_is_made_only_where_something_may_be_replaced(view: View, now: datetime) -> None:
    if decide(view, now) == Check():
        assert view.checks_automatic
        assert view.node.state in {State.IDLE, State.CHECKING, State.ARMED}


@UNTIMED
@given(views(), times)
def test_no_wait_lies_in_the_past_or_beyond_the_longest_pause(view: View, now: datetime) -> None:
    action = decide(view, now)
    if isinstance(action, Wait) and action.until is not None and action.code == "idle":
        assert now <= action.until <= now + max(view.longest_pause, view.first_check)
