"""The verb "install": disarm, write, read back, arm. Resumes where the journal says."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from images.errors import (
    PayloadError,
    PayloadRefusedError,
    SourceMismatchError,
    SourceMissingError,
)
from partitions.boot_files import refuse_file
from partitions.errors import DeviceReadError
from partitions.slots import Slot
from updater import given, planning
from updater.budget import BudgetError, UpdateBudgetError
from updater.checking import look
from updater.download import DownloadStoppedError, PayloadMissingError
from updater.errors import RefusedError, StateError, UnreachableError
from updater.install import (
    FactsMismatchError,
    ReadBackError,
    VerifiedSlot,
    WrittenSlot,
    verify_slot,
)
from updater.lifecycle import Event, State
from updater.pipeline import PayloadDigestError
from updater.plan import BROUGHT, Found, OwnFacts, Plan, check_fit, parts_of
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.schedule import next_check
from updater.state import Failure, NodeState, Report, SlotRecord, Spoiled, Unverified, Update
from updater.trust.errors import NothingNewerError
from updater.writing import write

if TYPE_CHECKING:
    from images.release import ImageFacts
    from updater.node import Node

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
RETRY_INTERVAL: Final = timedelta(seconds=30)  # first pause of an install that could not download
DOWNLOAD_STARTED: Final = (13, 1)
DOWNLOAD_FINISHED: Final = (14, 1)
INSTALLED: Final = (3, 1)
FAILED: Final = (3, 0)
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


class NotConfirmedError(RefusedError):
    """The booted slot has not proven itself, so the passive one is the only fall-back."""

    code = "booted-not-confirmed"
    hint = "Wait for the trial to end, or say `bascule confirm` if the system is good."


class AttemptsExhaustedError(RefusedError):
    """The same version failed here too often."""

    code = "attempts-exhausted"
    hint = "A newer version is tried by itself; `bascule update --force` tries this one again."


def install(node: Node, memory: NodeState, found: Found | None, *, by_person: bool) -> NodeState:
    """Write, verify and arm the update that the memory names; returns the memory in ARMED.

    Args:
        node: the collaborators.
        memory: in INSTALLING; or in VERIFYING, when the state folder failed there.
        found: what the check before gave; None when resuming, it is then looked up afresh.
        by_person: a person waits for it.

    Raises:
        DownloadStoppedError: told to stop; it resumes.
        UnreachableError: no mirror or server; it resumes at `next_check`.
        BudgetError: there are no bytes left to spend; it resumes at `next_check`.
        StateError: the state folder fails; it resumes at the next step.
        AnyRoomError: it failed; the slot stays disarmed and the memory says why.
    """
    if memory.state is State.VERIFYING:
        memory = node.advance(memory, Event.RESTARTED)
    while True:
        try:
            return _install(node, memory, found, by_person=by_person)
        except (DownloadStoppedError, StateError):
            raise  # neither is the version's fault; a full disk costs time only
        except ROOM_ERRORS as error:
            memory = node.store.read_state()
            if not _falls_back(memory, error):
                _end(node, memory, error)
                raise
            memory, found = _fall_back(node, memory, error), None


def _end(node: Node, memory: NodeState, error: AnyRoomError) -> None:
    """Pause where time or bytes to spend are all that lacks, else give up."""
    if isinstance(error, UnreachableError):
        _pause(node, error)
    elif isinstance(error, BudgetError) and _may_wait(_update_of(memory), error):
        _wait_for_budget(node, error)
    else:
        _give_up(node, error)


def _may_wait(update: Update, error: BudgetError) -> bool:
    """Tell whether an install that nobody may pay for now is kept for later.

    A channel is asked afresh with each attempt. What a plain server offered is not: before its
    first byte it is given up, so that the server hears of it and a newer offer is seen.
    """
    if update.origin == "offered":
        return update.attempts > 0 and not isinstance(error, UpdateBudgetError)
    return update.origin == "channel"


def _falls_back(memory: NodeState, error: AnyRoomError) -> bool:
    """Tell whether another payload of the version may do what this one did not.

    Only a delta has others: it may be wrong, may not be there, or may start from another image than
    the booted one. Each fails once; what fails a second time is given up.
    """
    update = _update_of(memory)
    is_first = update.sha256 not in {item.sha256 for item in memory.spoiled}
    has_others = update.origin == "channel" and update.kind == "delta"
    return has_others and is_first and isinstance(error, _FAULTS_OF_DELTAS)


def _fall_back(node: Node, memory: NodeState, error: AnyRoomError) -> NodeState:
    """Leave a delta out from now on, aloud; what follows is planned anew, within the limits."""
    update = _update_of(memory)
    log.warning(
        "delta is left out version=%s sha256=%s code=%s why=%s",
        update.version,
        update.sha256,
        error.code,
        error,
    )
    node.store.remember(
        node.clock(),
        "delta left out",
        version=update.version,
        code=error.code,
        sentence=str(error),
    )
    memory = planning.spoil(node, memory, update.sha256, error)
    return node.advance(memory, Event.RESTARTED)


def _install(node: Node, memory: NodeState, found: Found | None, *, by_person: bool) -> NodeState:
    _require_confirmed(node)
    memory, found = _still_wanted(node, memory, found, by_person=by_person)
    if found.facts is None:
        found = given.inspect(node, found)
    update = _update_of(memory)
    plan = _plan(node, update, found)
    check_fit(plan.facts, plan.regions)
    if isinstance(plan.facts, OwnFacts):
        update = msgspec.structs.replace(update, kind=found.kind, cost=found.cost)
        _require_budget(node, update, plan, found)
    elif not found.source_read:
        planning.require_source(node, plan.facts)
    for region in plan.regions.values():
        if region.room is not None:
            refuse_file(region, plan.booted)
    _clean_up(node)
    node.loader.disarm(plan.slot)
    memory = _begin(node, memory, plan, update)
    version = update.version
    written = write(node, plan, found.urls, version=version, counted_as=counted_as(update, plan))
    memory = node.advance(_refreshed(node), Event.WRITTEN)
    _report(node, memory, DOWNLOAD_FINISHED)
    verified = _verify(node, memory, written, found)
    memory = _named(node, memory, verified)
    _run_postinstall(node, plan)
    return _arm(node, memory, verified)


def _require_budget(node: Node, update: Update, plan: Plan, found: Found) -> None:
    """Refuse what no release names when it costs more than may be fetched; a file costs nothing."""
    if not found.urls[0].startswith("/"):
        what = f"the payload of version {found.version}" if found.version else "the given payload"
        planning.require_budget(node, counted_as(update, plan), what, planning.rest_of(node, plan))


def counted_as(update: Update, plan: Plan) -> str:
    """Name what an update's bytes count for: its version, or the payload that has none yet."""
    return update.version or plan.identity


def _clean_up(node: Node) -> None:
    """Let go of the slot: a program that was killed may have left it mounted."""
    if node.settings.updates.postinstall != "none":
        from updater.postinstall import clean_up

        clean_up(Path(node.settings.node.run_folder))


def _run_postinstall(node: Node, plan: Plan) -> None:
    """Let the image's own program do its part, if the settings say so.

    It may have changed the boot target before it failed: that is taken back at once.
    """
    updates = node.settings.updates
    if updates.postinstall == "none":
        return
    from updater.postinstall import PART, run_postinstall

    try:
        run_postinstall(
            plan.regions[PART],
            brought={name: region.path for name, region in plan.regions.items() if name in BROUGHT},
            run_folder=Path(node.settings.node.run_folder),
            timeout_secs=updates.postinstall_timeout_secs,
            environment=os.environ,
        )
    except ROOM_ERRORS:
        try:
            node.loader.disarm(plan.slot)
        except ROOM_ERRORS as second:  # why there is no update is the first; this is tried again
            log.warning("not disarmed code=%s why=%s", second.code, second)
        raise


def _verify(node: Node, memory: NodeState, written: WrittenSlot, found: Found) -> VerifiedSlot:
    """Read the slot back; an image that no release names must say itself that it may run."""

    def judged() -> ImageFacts:
        image = given.image_in(node, written.plan.slot)
        given.judge(image, _case(node, memory, found))
        return image

    try:
        return verify_slot(written, judged)
    except ReadBackError:
        node.store.drop_journal()  # what it names as flushed is not what the disk holds
        raise


def _case(node: Node, memory: NodeState, found: Found) -> given.Case:
    pin = node.store.read_pin()
    return given.Case(
        running=found.running,
        floor=max(node.store.read_floor(), found.running.rollback_index),
        denied=node.store.read_denied(),
        claimed=found.version if found.origin == "offered" else "",
        pinned=pin.version if pin else "",
        forced=_update_of(memory).forced,
    )


def _named(node: Node, memory: NodeState, verified: VerifiedSlot) -> NodeState:
    """Note what a given payload turned out to be: before it is armed, as a trial needs it."""
    named = msgspec.structs.replace(
        _update_of(memory), version=verified.version, rollback_index=verified.rollback_index
    )
    return node.keep(memory, update=named)


def _require_confirmed(node: Node) -> None:
    """Refuse to touch the only fall-back (design, promise 3)."""
    booted = node.boot().slot
    if not node.loader.read().slots[booted].confirmed:
        raise NotConfirmedError(f"slot {booted.value} is booted and not confirmed")


def _still_wanted(
    node: Node, memory: NodeState, found: Found | None, *, by_person: bool
) -> tuple[NodeState, Found]:
    """Return a fresh verdict of trust and policy; the release may have changed meanwhile."""
    update = _update_of(memory)
    if found is not None:
        return memory, found
    if _vouches_for_itself(node, update):
        return memory, given.again(node, update)
    version = update.version if update.pinned else ""
    found = look(node, memory, by_person=by_person, forced=update.forced, version=version)
    if found.sha256 == update.sha256 and update.origin == "channel":
        planned = msgspec.structs.replace(update, cost=found.cost, left_out=found.left_out)
        return node.keep(memory, update=planned), found
    fresh = msgspec.structs.replace(
        update,
        forced=update.forced and found.version == update.version,
        origin=found.origin,
        places=(),
        verified=False,  # the slot holds what was wanted before
        version=found.version,
        rollback_index=found.rollback_index,
        target_path=found.path,
        sha256=found.sha256,
        size=found.size,
        kind=found.kind,
        cost=found.cost,
        left_out=found.left_out,
    )
    return node.advance(memory, Event.SUPERSEDED, update=fresh), found


def _vouches_for_itself(node: Node, update: Update) -> bool:
    """Tell whether a payload without a release may go on; an offered one only while we follow."""
    following = node.settings.trust.mode == "payload-key"
    return update.origin == "given" or (update.origin == "offered" and following)


def _plan(node: Node, update: Update, found: Found) -> Plan:
    slot = Slot(update.slot)
    settings = node.settings
    if found.facts is None:  # a broken invariant: it was inspected before
        raise AssertionError("a payload is planned whose metadata nobody read")
    return Plan(
        facts=found.facts,
        sha256=found.sha256,
        size=found.size,
        slot=slot,
        regions=parts_of(
            found.facts, node.regions(slot), postinstall=settings.updates.postinstall != "none"
        ),
        keys=given.load_keys(settings.trust.payload_keys),
        checkpoint_bytes=settings.download.checkpoint_mib * MIB,
        booted=node.booted(),
        workers=settings.download.workers,
        sources=node.regions(slot.other),
        reuse=True,
    )


def _begin(node: Node, memory: NodeState, plan: Plan, update: Update) -> NodeState:
    """Count the attempt and say so before the first byte."""
    update = msgspec.structs.replace(
        update, attempts=update.attempts + 1, size=plan.size, verified=False
    )
    slots = {name: record for name, record in memory.slots.items() if name != update.slot}
    memory = node.keep(
        memory,
        update=update,
        slots=slots,
        unverified=Unverified(slot=update.slot),
        waiting_code="",
        waiting_sentence="",
    )
    if update.attempts == 1:
        _report(node, memory, DOWNLOAD_STARTED)
    log.info(
        "install begins version=%s slot=%s attempt=%d kind=%s cost=%d left-out=%s",
        update.version,
        update.slot,
        update.attempts,
        update.kind,
        update.cost,
        "; ".join(update.left_out) or "nothing",
    )
    return memory


def _refreshed(node: Node) -> NodeState:
    """Return the memory with the downloaded bytes of the journal."""
    memory = node.store.read_state()
    journal = node.store.read_journal()
    update = _update_of(memory)
    downloaded = journal.downloaded if journal else update.downloaded
    return msgspec.structs.replace(
        memory, update=msgspec.structs.replace(update, downloaded=downloaded)
    )


def _arm(node: Node, memory: NodeState, verified: VerifiedSlot) -> NodeState:
    """Make the verified slot the target: the one step that changes what boots next.

    That it is whole is noted first, so that its boot is a trial though power fails in between.
    """
    update = msgspec.structs.replace(_update_of(memory), verified=True)
    memory = node.keep(memory, update=update, unverified=None)
    node.arm(verified.slot)
    record = SlotRecord(version=verified.version, rollback_index=verified.rollback_index)
    memory = node.advance(
        memory,
        Event.VERIFIED,
        slots=memory.slots | {verified.slot.value: record},
        checks_failed=0,
        spoiled=(),
        last_failure=None,
        next_check=_next(node, 0, timedelta(seconds=node.settings.server.poll_interval_secs)),
    )
    node.store.drop_journal()
    planning.settle(node, verified.version)
    node.progress.clear()
    log.info("slot armed slot=%s version=%s", verified.slot.value, verified.version)
    update = _update_of(memory)
    node.store.remember(
        node.clock(),
        "armed",
        version=verified.version,
        kind=update.kind,
        downloaded=update.downloaded,
    )
    _report(node, memory, INSTALLED)
    return memory


def _pause(node: Node, error: UnreachableError) -> None:
    """Keep what is flushed and try again later."""
    memory = node.store.read_state()
    failures = memory.checks_failed + 1
    interval = min(RETRY_INTERVAL, timedelta(seconds=node.settings.server.poll_interval_secs))
    node.keep(
        memory,
        checks_failed=failures,
        next_check=_next(node, failures, interval),
        last_failure=node.failure(error, version=_update_of(memory).version),
    )


def _wait_for_budget(node: Node, error: BudgetError) -> None:
    """Keep what is flushed; look again at the usual pace whether there is something to spend.

    A cheaper payload that was not there may be there by then.
    """
    memory = node.store.read_state()
    log.warning("install waits code=%s why=%s", error.code, error)
    node.keep(
        memory,
        checks_failed=1,
        spoiled=_lasting(memory),
        next_check=_next(node, 0, timedelta(seconds=node.settings.server.poll_interval_secs)),
        last_failure=node.failure(error, version=_update_of(memory).version),
    )


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
    update = _update_of(memory)
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
        next_check=_next(node, failures, interval),
        **counted,
    )
    node.progress.clear()
    if nothing:
        return
    log.error("install failed version=%s code=%s why=%s", update.version, failure.code, error)
    node.store.remember(node.clock(), "install failed", version=update.version, code=failure.code)
    _report(node, memory, FAILED, failure=failure)


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


def _next(node: Node, failures: int, interval: timedelta) -> datetime:
    return next_check(
        node.clock(),
        interval=interval,
        jitter_share=node.settings.server.poll_jitter_share,
        chance=node.chance(),
        failures=failures,
    )


def _report(
    node: Node, memory: NodeState, kind: tuple[int, int], *, failure: Failure | None = None
) -> None:
    update = _update_of(memory)
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


def _update_of(memory: NodeState) -> Update:
    if memory.update is None:  # a broken invariant: INSTALLING to ARMED always have an update
        raise AssertionError(f"state {memory.state.value} without an update")
    return memory.update
