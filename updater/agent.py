"""Decides the one next action of a node. No I/O, no clock: a view and a time go in.

What is decided here is done by the engine; which moves are legal stands in the lifecycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias, assert_never

from updater import budget
from updater.gates import GateVerdict, first_closed
from updater.lifecycle import State
from updater.state import NodeState

UNVERIFIED: Final = "slot-unverified"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a decision may depend on.

    Attributes:
        node: the node's memory.
        boot_id: the present boot.
        uptime: since the present boot; unlike the time of day it never jumps.
        checks_automatic: `updates.automatic`.
        first_check: uptime before which no check is made, so that a site whose power comes
            back does not ask all at once.
        longest_pause: until a check; a due time farther away is from a clock that was wrong.
        gates: the verdicts before a reboot.
        trial_deadline: uptime by which a trial must have shown health.
        can_fall_back: whether the loader would boot the other slot if this one is rejected.
        booted_confirmed: whether the loader has the booted slot as good already.
        health_interval: pause between two looks at the health.
        last_examined: uptime when this process last looked at the health.
        healthy_since: uptime at the first of the looks in a row, up to the last one, that found
            the system healthy; None when the last one did not. A new process begins anew.
        steady: how long a trial must stay healthy before it is confirmed.
        return_retry_at: uptime at which returning the permit is tried again after it failed.
        reboot_retry_at: uptime at which a reboot that did not happen is ordered again.
    """

    node: NodeState
    boot_id: str
    uptime: timedelta
    checks_automatic: bool
    first_check: timedelta
    longest_pause: timedelta
    gates: Sequence[GateVerdict]
    trial_deadline: timedelta
    can_fall_back: bool
    booted_confirmed: bool
    health_interval: timedelta
    last_examined: timedelta | None = None
    healthy_since: timedelta | None = None
    steady: timedelta = timedelta()
    return_retry_at: timedelta | None = None
    reboot_retry_at: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Do nothing until `until` (None: until something happens)."""

    until: datetime | None
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Check:
    """Ask Omaha and TUF."""


@dataclass(frozen=True, slots=True)
class Install:
    """Begin or resume writing the passive slot, verify and arm it."""


@dataclass(frozen=True, slots=True)
class TakePermit:
    """Ask the cluster for leave to reboot."""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Order the reboot; the permit is held and all gates are open."""


@dataclass(frozen=True, slots=True)
class Examine:
    """Look at the health of the booted system."""


@dataclass(frozen=True, slots=True)
class Confirm:
    """End the trial well, or finish a confirmation that was cut short."""


@dataclass(frozen=True, slots=True)
class FallBack:
    """The trial ended without health: go back to the old slot."""


@dataclass(frozen=True, slots=True)
class ReturnPermit:
    """Give the permit back: the system that came up is healthy."""


Action: TypeAlias = (
    Wait | Check | Install | TakePermit | Reboot | Examine | Confirm | FallBack | ReturnPermit
)


def decide(view: View, now: datetime) -> Action:
    """Return the one next action; the same view and time give the same answer."""
    node = view.node
    match node.state:
        case State.IDLE | State.CHECKING:
            return _when_idle(view, now)
        case State.INSTALLING | State.VERIFYING:
            return _when_installing(view, now)
        case State.ARMED:
            return _when_armed(view, now)
        case State.REBOOTING:
            return Reboot()
        case State.TRIAL:
            return _in_trial(view, now)
        case _:
            assert_never(node.state)


def _when_idle(view: View, now: datetime) -> Action:
    """Return the permit that is owed as soon as it may be; check when due, meanwhile too."""
    idle = Wait(until=None, code="idle", sentence="nothing newer is wanted")
    if view.node.permit == "none":
        return _check_or_wait(view, now, idle)
    owed = _returning(view, now)
    return _check_or_wait(view, now, owed) if isinstance(owed, Wait) else owed


def _returning(view: View, now: datetime) -> Action:
    retry_at = view.return_retry_at
    if retry_at is not None and view.uptime < retry_at:
        sentence = "the permit could not be returned, it is tried again"
        return Wait(until=now + (retry_at - view.uptime), code="permit-owed", sentence=sentence)
    if view.node.healthy_boot == view.boot_id:
        return ReturnPermit()
    return _examine_or_pause(view, now)


def _when_installing(view: View, now: datetime) -> Action:
    """Write on; but others could use a permit that was taken for the release before."""
    if view.node.permit != "none":
        owed = _returning(view, now)
        if not isinstance(owed, Wait):
            return owed
    retry = view.node.next_check
    if view.node.checks_failed and retry is not None and not _has_come(view, retry, now):
        failure = view.node.last_failure
        if failure is not None and failure.code in budget.WAITS:
            return Wait(until=retry, code=failure.code, sentence=failure.sentence)
        sentence = "the last attempt failed; it resumes by itself"
        return Wait(until=retry, code="install-retry", sentence=sentence)
    return Install()


def _when_armed(view: View, now: datetime) -> Action:
    """Reboot when gates and permit allow; look for something newer while they do not."""
    waiting = _kept_from_rebooting(view, now)
    if waiting is not None:
        if view.node.permit == "none":
            return _newer_or_wait(view, now, waiting)
        # Others could use the permit while we cannot.
        owed = _returning(view, now)
        return _newer_or_wait(view, now, waiting) if isinstance(owed, Wait) else owed
    if view.node.permit == "held":
        return Reboot()
    newer = _newer_or_wait(view, now, Wait(until=None, code="", sentence=""))
    return newer if isinstance(newer, Check) else TakePermit()


def _kept_from_rebooting(view: View, now: datetime) -> Wait | None:
    """Return what the reboot has to wait for besides the permit, None when it may be."""
    closed = first_closed(view.gates)
    if closed is not None:
        return Wait(until=closed.opens_at, code=closed.code, sentence=closed.sentence)
    retry_at = view.reboot_retry_at
    if retry_at is None or view.uptime >= retry_at:
        return None
    sentence = "the reboot was ordered and did not happen; it is ordered again later"
    return Wait(until=now + (retry_at - view.uptime), code="reboot-overdue", sentence=sentence)


def _newer_or_wait(view: View, now: datetime, waiting: Wait) -> Action:
    """Check for what would replace the armed slot; a person's rollback is not replaced."""
    if view.node.update is not None and view.node.update.rollback:
        return waiting
    return _check_or_wait(view, now, waiting)


def _in_trial(view: View, now: datetime) -> Action:
    """Give health its time, then go back if there is anything to go back to.

    Nothing is judged unseen: this process looks at the health at least once, however late it
    is. Healthy looks in a row that are under way at the deadline may go on: they end by the
    steady time, or by the first look that fails. A trial that nobody ordered (memory lost) has
    no end. What nobody verified is never confirmed by itself, and left at once; but once only, as
    somebody or the firmware may choose it again and again.
    """
    unverified = view.node.unverified
    if unverified is not None and unverified.booted_in == view.boot_id:
        if view.can_fall_back and unverified.boots == 1:
            return FallBack()
        sentence = f"an install into slot {unverified.slot}, which runs, was never verified"
        return Wait(until=None, code=UNVERIFIED, sentence=sentence)
    if view.booted_confirmed or _is_steady(view):
        return Confirm()
    ordered = view.node.update is not None
    unwell = view.last_examined is not None and view.healthy_since is None
    late = view.uptime >= view.trial_deadline and unwell
    if ordered and view.can_fall_back and late:
        return FallBack()
    return _examine_or_pause(view, now)


def _is_steady(view: View) -> bool:
    """Tell whether looks in a row, the last one included, found it healthy for long enough."""
    if view.healthy_since is None or view.last_examined is None:
        return False
    return view.last_examined - view.healthy_since >= view.steady


def _examine_or_pause(view: View, now: datetime) -> Action:
    last = view.last_examined
    if last is not None and view.uptime < last + view.health_interval:
        until = now + (last + view.health_interval - view.uptime)
        return Wait(until=until, code="health-pending", sentence="health is looked at again soon")
    return Examine()


def _check_or_wait(view: View, now: datetime, waiting: Wait) -> Action:
    if not view.checks_automatic:
        return waiting
    due = view.node.next_check
    if due is None or _has_come(view, due, now):
        if view.uptime >= view.first_check:
            return Check()
        due = now + (view.first_check - view.uptime)
    until = due if waiting.until is None else min(due, waiting.until)
    return Wait(until=until, code=waiting.code, sentence=waiting.sentence)


def _has_come(view: View, due: datetime, now: datetime) -> bool:
    """Tell whether `due` is past, or so far away that it was set by a clock that was wrong."""
    return now >= due or due - now > view.longest_pause
