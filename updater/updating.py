"""The verb "install": disarm, write, read back, arm. Resumes where the journal says."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from partitions.boot_files import refuse_file
from partitions.slots import Slot
from updater import ending, given, planning
from updater.checking import look
from updater.download import DownloadStoppedError
from updater.ending import fall_back, falls_back, next_attempt, report, update_of
from updater.errors import RefusedError, StateError
from updater.install import VerifiedSlot, WrittenSlot, verify_slot
from updater.lifecycle import Event, State
from updater.plan import BROUGHT, Found, OwnFacts, Plan, check_fit, parts_of
from updater.proof import ReadBackError
from updater.rooms import ROOM_ERRORS
from updater.state import NodeState, SlotRecord, Unverified, Update
from updater.writing import write

if TYPE_CHECKING:
    from images.release import ImageFacts
    from updater.node import Node

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
DOWNLOAD_STARTED: Final = (13, 1)
DOWNLOAD_FINISHED: Final = (14, 1)
INSTALLED: Final = (3, 1)


class NotConfirmedError(RefusedError):
    """The booted slot has not proven itself, so the passive one is the only fall-back."""

    code = "booted-not-confirmed"
    hint = "Wait for the trial to end, or say `bascule confirm` if the system is good."


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
            if not falls_back(memory, error):
                ending.end(node, memory, error)
                raise
            memory, found = fall_back(node, memory, error), None


def _install(node: Node, memory: NodeState, found: Found | None, *, by_person: bool) -> NodeState:
    _require_confirmed(node)
    memory, found = _still_wanted(node, memory, found, by_person=by_person)
    if found.facts is None:
        found = given.inspect(node, found)
    update = update_of(memory)
    plan = _plan(node, update, found)
    check_fit(plan.facts, plan.regions)
    if isinstance(plan.facts, OwnFacts):
        whole_on = _require_budget(node, update, plan, found)
        update = msgspec.structs.replace(
            update, kind=found.kind, cost=found.cost, whole_on=whole_on
        )
    for region in plan.regions.values():
        if region.room is not None:
            refuse_file(region, plan.booted)
    _clean_up(node)
    node.loader.disarm(plan.slot)
    memory = _begin(node, memory, plan, update)
    version = update.version
    counted = counted_as(update, plan)
    written = write(node, plan, found.urls, version=version, counted_as=counted)
    memory = node.advance(_refreshed(node), Event.WRITTEN)
    report(node, memory, DOWNLOAD_FINISHED)
    verified = _verify(node, memory, written, found)
    memory = _named(node, memory, verified)
    _run_postinstall(node, plan)
    return _arm(node, memory, verified, counted_as=counted)


def _require_budget(node: Node, update: Update, plan: Plan, found: Found) -> str:
    """Refuse what no release names when it costs more than may be fetched; a file costs nothing.

    Returns:
        The day on which it will be whole, empty for this one.
    """
    if found.urls[0].startswith("/"):
        return ""
    what = f"the payload of version {found.version}" if found.version else "the given payload"
    days = planning.require_budget(node, plan, counted_as(update, plan), what)
    return planning.day_ahead(node, days)


def counted_as(update: Update, plan: Plan) -> str:
    """Name what an update's bytes count for: its version, or what a person gave.

    What was given has no version until its image is written, and keeps its name afterwards.
    """
    return plan.identity if update.origin == "given" else update.version


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
    except ReadBackError as error:
        node.store.drop_journal()  # what it names as flushed is not what the disk holds
        log.warning("what was written is void code=%s why=%s", error.code, error)
        planning.require_source(node, written.plan.facts)
        raise


def _case(node: Node, memory: NodeState, found: Found) -> given.Case:
    pin = node.store.read_pin()
    return given.Case(
        running=found.running,
        floor=max(node.store.read_floor(), found.running.rollback_index),
        denied=node.store.read_denied(),
        claimed=found.version if found.origin == "offered" else "",
        pinned=pin.version if pin else "",
        forced=update_of(memory).forced,
    )


def _named(node: Node, memory: NodeState, verified: VerifiedSlot) -> NodeState:
    """Note what a given payload turned out to be: before it is armed, as a trial needs it."""
    named = msgspec.structs.replace(
        update_of(memory), version=verified.version, rollback_index=verified.rollback_index
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
    update = update_of(memory)
    if found is not None:
        return memory, found
    if _vouches_for_itself(node, update):
        return memory, given.again(node, update)
    version = update.version if update.pinned else ""
    found = look(node, memory, by_person=by_person, forced=update.forced, version=version)
    if found.sha256 == update.sha256 and update.origin == "channel":
        planned = msgspec.structs.replace(
            update, cost=found.cost, left_out=found.left_out, whole_on=found.whole_on
        )
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
        whole_on=found.whole_on,
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
        report(node, memory, DOWNLOAD_STARTED)
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
    update = update_of(memory)
    if journal is None:
        return memory
    update = msgspec.structs.replace(
        update, downloaded=journal.downloaded, written=journal.written, kept=journal.kept
    )
    return msgspec.structs.replace(memory, update=update)


def _arm(node: Node, memory: NodeState, verified: VerifiedSlot, *, counted_as: str) -> NodeState:
    """Make the verified slot the target: the one step that changes what boots next.

    That it is whole is noted first, so that its boot is a trial though power fails in between.
    """
    update = msgspec.structs.replace(update_of(memory), verified=True)
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
        next_check=next_attempt(
            node, 0, timedelta(seconds=node.settings.server.poll_interval_secs)
        ),
    )
    node.store.drop_journal()
    planning.settle(node, counted_as)
    node.progress.clear()
    update = update_of(memory)
    log.info(
        "slot armed slot=%s version=%s written=%d kept=%d",
        verified.slot.value,
        verified.version,
        update.written,
        update.kept,
    )
    node.store.remember(
        node.clock(),
        "armed",
        version=verified.version,
        kind=update.kind,
        downloaded=update.downloaded,
        written=update.written,
        kept=update.kept,
    )
    report(node, memory, INSTALLED)
    return memory
