"""How an attempt to install ends: another payload, a pause, a wait for bytes, or given up.

What is written where and armed is in `updating`; here is what the memory keeps, what is reported
and when it is tried again.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from images.errors import (
    PayloadError,
    PayloadRefusedError,
    SourceMismatchError,
    SourceMissingError,
)
from partitions.errors import DeviceReadError
from updater import given, planning
from updater.budget import BudgetError, UpdateBudgetError
from updater.download import PayloadMissingError
from updater.errors import RefusedError, UnreachableError
from updater.install import FactsMismatchError
from updater.lifecycle import Event
from updater.pipeline import PayloadDigestError
from updater.proof import ReadBackError
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.schedule import next_check
from updater.state import Failure, NodeState, Report, Spoiled, Update
from updater.trust.errors import NothingNewerError

if TYPE_CHECKING:
    from updater.node import Node

log = logging.getLogger(__name__)

RETRY_INTERVAL: Final = timedelta(seconds=30)  # first pause of an install that could not download
FAILED: Final = (3, 0)
DEFERRED: Final = (3, 9)
# What may be the delta's fault alone, so that another payload of the version is tried. A slot that
# reads back wrong is one: what an operation makes of the booted slot is proven there.
_FAULTS_OF_DELTAS: Final = (
    PayloadError,
    PayloadRefusedError,
    SourceMismatchError,
    SourceMissingError,
    FactsMismatchError,
    PayloadDigestError,
    PayloadMissingError,
    ReadBackError,
    DeviceReadError,  # of the booted slot: the full payload does not read it
)
# Of these the next attempt may be free: a mirror that lacked the file, a slot that changed.
_PASSING: Final = frozenset({PayloadMissingError.code, SourceMismatchError.code})
# Only these count against a version: a full disk or a missing key is not the release's fault.
_FAULTS_OF_RELEASES: Final = (
    frozenset(
        kind.code
        for family in (PayloadError, PayloadRefusedError)
        for kind in (family, *family.__subclasses__())
    )
    | {FactsMismatchError.code, PayloadDigestError.code}
    | given.FAULTS
)


class AttemptsExhaustedError(RefusedError):
    """The same version failed here too often."""

    code = "attempts-exhausted"
    hint = "A newer version is tried by itself; `bascule update --force` tries this one again."


def end(node: Node, memory: NodeState, error: AnyRoomError) -> None:
    """Pause where time or bytes to spend are all that lacks, else give up."""
    if isinstance(error, UnreachableError):
        _pause(node, error)
    elif isinstance(error, BudgetError) and _may_wait(update_of(memory), error):
        _wait_for_budget(node, error)
    else:
        _give_up(node, error)


def falls_back(memory: NodeState, error: AnyRoomError) -> bool:
    """Tell whether another payload of the version may do what this one did not.

    Only a delta has others: it may be wrong, may not be there, or may start from another image than
    the booted one. Each fails once; what fails a second time is given up.
    """
    update = update_of(memory)
    is_first = update.sha256 not in {item.sha256 for item in memory.spoiled}
    has_others = update.origin == "channel" and update.kind == "delta"
    return has_others and is_first and isinstance(error, _FAULTS_OF_DELTAS)


def fall_back(node: Node, memory: NodeState, error: AnyRoomError) -> NodeState:
    """Leave a delta out from now on, aloud; what follows is planned anew, within the limits."""
    update = update_of(memory)
    memory = planning.spoil(node, memory, update, error)
    spent = memory.spoiled[-1].cost
    log.warning(
        "delta is left out version=%s sha256=%s spent=%d code=%s why=%s",
        update.version,
        update.sha256,
        spent,
        error.code,
        error,
    )
    node.store.remember(
        node.clock(),
        "delta left out",
        version=update.version,
        code=error.code,
        sentence=str(error),
        downloaded=spent,
    )
    return node.advance(memory, Event.RESTARTED)


def next_attempt(node: Node, failures: int, interval: timedelta) -> datetime:
    """Return when the next try is due, a little by chance."""
    return next_check(
        node.clock(),
        interval=interval,
        jitter_share=node.settings.server.poll_jitter_share,
        chance=node.chance(),
        failures=failures,
    )


def report(
    node: Node, memory: NodeState, kind: tuple[int, int], *, failure: Failure | None = None
) -> None:
    """Tell the server how far the update is: an event's type and result."""
    update = update_of(memory)
    node.report(
        Report(
            event_type=kind[0],
            event_result=kind[1],
            at=node.clock(),
            version=update.previous_version,
            code=failure.code if failure else "",
            sentence=failure.sentence if failure else "",
            next_version=update.version,
            downloaded=update.downloaded,
        )
    )


def update_of(memory: NodeState) -> Update:
    """Return the update under way."""
    if memory.update is None:  # a broken invariant: INSTALLING to ARMED always have an update
        raise AssertionError(f"state {memory.state.value} without an update")
    return memory.update


def _may_wait(update: Update, error: BudgetError) -> bool:
    """Tell whether an install that nobody may pay for now is kept for later.

    A channel is asked afresh with each attempt. What a plain server offered is not: before its
    first byte it is given up, so that the server hears of it and a newer offer is seen.
    """
    if update.origin == "offered":
        return update.attempts > 0 and not isinstance(error, UpdateBudgetError)
    return update.origin == "channel"


def _pause(node: Node, error: UnreachableError) -> None:
    """Keep what is flushed and try again later."""
    memory = node.store.read_state()
    failures = memory.checks_failed + 1
    interval = min(RETRY_INTERVAL, timedelta(seconds=node.settings.server.poll_interval_secs))
    node.keep(
        memory,
        checks_failed=failures,
        next_check=next_attempt(node, failures, interval),
        last_failure=node.failure(error, version=update_of(memory).version),
    )


def _wait_for_budget(node: Node, error: BudgetError) -> None:
    """Keep what is flushed; look again at the usual pace whether there is something to spend.

    A cheaper payload that was not there may be there by then.
    """
    memory = node.store.read_state()
    log.warning("install waits code=%s why=%s", error.code, error)
    _put_off(node, memory, error)
    node.keep(
        memory,
        checks_failed=1,
        spoiled=_lasting(memory),
        next_check=next_attempt(
            node, 0, timedelta(seconds=node.settings.server.poll_interval_secs)
        ),
        last_failure=node.failure(error, version=update_of(memory).version),
    )


def _put_off(node: Node, memory: NodeState, error: BudgetError) -> None:
    """Let a server that steers the rollout give the place to another node, if it does not yet.

    A plain server knows no such word, and counts an install under way as its answer.
    """
    update = update_of(memory)
    if update.origin == "channel" and not error.is_told:
        report(node, memory, DEFERRED, failure=node.failure(error, version=update.version))


def _lasting(memory: NodeState) -> tuple[Spoiled, ...]:
    """Return the payloads that failed for what does not pass by itself."""
    return tuple(item for item in memory.spoiled if item.code not in _PASSING)


def _give_up(node: Node, error: AnyRoomError) -> None:
    """End the attempt: the slot stays disarmed, the reason is kept, reported and counted.

    Raises:
        AnyRoomError: `error` again, since disarming failed too: the attempt does not end, and
            begins with disarming when it is taken up.
    """
    memory = node.store.read_state()
    update = update_of(memory)
    failure = node.failure(error, version=update.version)
    try:
        _leave_disarmed(node)
    except ROOM_ERRORS as second:
        log.warning("slot not disarmed slot=%s code=%s why=%s", update.slot, second.code, second)
        again = str(second) == str(error)  # what stopped us before: its first reason is kept
        kept = memory.last_failure if again else failure
        node.advance(memory, Event.RESTARTED, last_failure=kept)
        raise error from second
    nothing = isinstance(error, NothingNewerError)
    failures = 0 if nothing else memory.failures_of(update.version) + 1
    counted = {"failed_version": update.version, "failed_times": failures}
    if update.origin == "given":  # a person gives it again or not; it says nothing of others
        failures, counted = 1, {}
    _deny_after_too_many(node, update, failure, failures)
    interval = timedelta(seconds=node.settings.server.poll_interval_secs)
    node.advance(
        memory,
        Event.FAILED,
        last_check_code=getattr(error, "server_code", error.code),
        last_check_sentence=str(error),
        update=None,
        last_failure=None if nothing else failure,
        spoiled=_lasting(memory),
        checks_failed=0,
        next_check=next_attempt(node, failures, interval),
        **counted,
    )
    node.progress.clear()
    if nothing:
        return
    log.error("install failed version=%s code=%s why=%s", update.version, failure.code, error)
    node.store.remember(node.clock(), "install failed", version=update.version, code=failure.code)
    report(node, memory, FAILED, failure=failure)


def _leave_disarmed(node: Node) -> None:
    """Disarm the passive slot if it is the target: killed between arming and noting it.

    A slot that is merely whole stays so: the error may have come before the first byte.
    """
    passive = node.boot().slot.other
    if node.loader.read().target is passive:
        node.loader.disarm(passive)


def _deny_after_too_many(node: Node, update: Update, failure: Failure, failures: int) -> None:
    release_at_fault = failure.code in _FAULTS_OF_RELEASES and update.origin != "given"
    if release_at_fault and failures >= node.settings.updates.max_attempts:
        sentence = f"version {update.version} failed {failures} times, last: {failure.sentence}"
        exhausted = AttemptsExhaustedError(sentence)
        node.store.deny(update.version, node.failure(exhausted, version=update.version))
