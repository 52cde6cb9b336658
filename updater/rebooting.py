"""The verbs around a reboot: permit, reboot, trial, confirm, fall back, roll back."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from updater.agent import UNVERIFIED
from updater.checking import withdraw
from updater.errors import (
    EXIT_NOTHING,
    IllegalTransitionError,
    RefusedError,
    StateError,
    UpdaterError,
)
from updater.guard import note_confirmed
from updater.health import HealthVerdict, examine
from updater.lifecycle import Event, State
from updater.permit.contract import Permit, Waiting
from updater.rooms import ROOM_ERRORS
from updater.schedule import next_check
from updater.state import Failure, NodeState, Report, SlotRecord, Unverified, Update

if TYPE_CHECKING:
    from images.release import ImageFacts
    from partitions.slots import Slot
    from updater.node import Node

log = logging.getLogger(__name__)

UPDATED: Final = (3, 2)  # Omaha: complete, after the reboot
FAILED: Final = (3, 0)
TRIES_GIVEN_BACK_MAX: Final = 3  # clean shutdowns of one trial that cost it nothing


class NothingToRebootError(UpdaterError):
    """No slot is armed."""

    code = "nothing-armed"
    hint = "`bascule update` installs what is offered."
    exit_status = EXIT_NOTHING


class RebootOverdueError(UpdaterError):
    """The reboot command said yes, and nothing happened."""

    code = "reboot-overdue"
    hint = "Something inhibits the shutdown: see `systemd-inhibit --list` and node.reboot_command."


class NothingToConfirmError(UpdaterError):
    """The booted slot is confirmed already."""

    code = "already-confirmed"
    hint = "Nothing has to be done."
    exit_status = EXIT_NOTHING


class RollbackRefusedError(RefusedError):
    """The other slot holds nothing that may run."""

    code = "rollback-refused"
    hint = "`bascule slots` shows what the slots hold; a downgrade is granted by the channel."


def take_permit(node: Node, memory: NodeState) -> tuple[NodeState, Permit | Waiting]:
    """Ask the cluster for leave to reboot; returns the memory and the permit or the wait.

    Raises:
        PermitError: the keeper refuses.
    """
    version = memory.update.version if memory.update else None
    # From here on we may hold one, whatever becomes of the answer.
    memory = node.keep(memory, permit="unknown") if memory.permit == "none" else memory
    answer = node.permits().acquire(f"update to {version}", version=version)
    if isinstance(answer, Waiting):
        waiting = {"waiting_code": answer.code, "waiting_sentence": answer.sentence}
        return node.keep(memory, **waiting), answer
    return node.keep(memory, permit="held", waiting_code="", waiting_sentence=""), answer


def reboot(node: Node, memory: NodeState) -> NodeState:
    """Order the reboot; the permit is held.

    Raises:
        MachineError: the reboot command failed; the memory is ARMED again.
        PartitionsError: the loader would boot something else, and cannot be told.
    """
    if not is_falling_back(node, memory):
        _arm_again(node, memory)
    if memory.state is State.ARMED:
        memory = node.advance(memory, Event.PERMITTED)
        version = memory.update.version if memory.update else ""
        node.store.remember(node.clock(), "rebooting", version=version)
    log.info("reboot ordered version=%s", memory.update.version if memory.update else "")
    try:
        node.machine.reboot()
    except UpdaterError as error:
        if not is_falling_back(node, memory):
            node.advance(memory, Event.NOT_REBOOTED, last_failure=node.failure(error))
        raise
    return memory


def _arm_again(node: Node, memory: NodeState) -> None:
    """Make the update's slot the target once more, if something else has become it since.

    Firmware updates and people use the firmware's BootNext as well.
    """
    update = memory.update
    if update is None or update.withdrawn:
        return
    slot, target = node.boot().slot.other, node.loader.read().target
    if target is not slot:
        found = target.value if target is not None else ""
        log.warning("slot is not the target any more slot=%s target=%s", slot.value, found)
        node.arm(slot)


def note_no_reboot(node: Node, memory: NodeState) -> NodeState:
    """Go back to ARMED: the reboot was ordered, long ago, and did not come."""
    failure = node.failure(RebootOverdueError("the reboot was ordered and did not happen"))
    log.error("reboot did not happen code=%s", failure.code)
    return node.advance(memory, Event.NOT_REBOOTED, last_failure=failure)


def give_try_back(node: Node, memory: NodeState) -> NodeState:
    """Give the loader's try back when a person shuts the machine down during a trial.

    Only as often as `TRIES_GIVEN_BACK_MAX`, so that a trial still ends. A slot that the loader has
    as confirmed already needs none: its confirmation was merely not noted to the end.

    Raises:
        PartitionsError: the loader's memory cannot be written.
    """
    update = memory.update
    if memory.state is not State.TRIAL or update is None:
        return memory
    boot = node.boot()
    booted = node.loader.read().slots[boot.slot]
    if booted.confirmed:
        return memory
    marker = node.store.read_marker()
    if marker is not None and marker.guarded_in == boot.boot_id:
        return memory  # not a person: the guard ends this trial
    update = msgspec.structs.replace(update, shut_down_in=boot.boot_id)
    if update.tries_given_back >= TRIES_GIVEN_BACK_MAX:
        return node.keep(memory, update=update)
    slot, left = boot.slot, booted.tries_left
    given = update.tries_given_back + 1
    memory = node.keep(memory, update=msgspec.structs.replace(update, tries_given_back=given))
    node.loader.arm(slot, tries=min(left + 1, node.loader.max_tries))
    log.info("try given back slot=%s tries=%d", slot.value, left + 1)
    return memory


def is_falling_back(node: Node, memory: NodeState) -> bool:
    """Tell whether the reboot under way leaves a trial that failed."""
    if memory.state is not State.REBOOTING:
        return False
    return memory.update is None or memory.update.slot == node.boot().slot.value


def can_fall_back(node: Node) -> bool:
    """Tell whether the loader would boot the other slot if the booted one were rejected."""
    return node.loader.read().slots[node.boot().slot.other].armed


def order_reboot(node: Node, memory: NodeState) -> NodeState:
    """Note that a person wants the reboot as soon as the gates and the permit allow.

    Raises:
        NothingToRebootError: nothing is armed.
    """
    require_armed(memory)
    return node.keep(memory, reboot_ordered=True)


def require_armed(memory: NodeState) -> None:
    """Return when there is something to reboot into.

    Raises:
        NothingToRebootError: nothing is armed.
    """
    if memory.state not in {State.ARMED, State.REBOOTING}:
        raise NothingToRebootError(f"nothing is armed: the node is {memory.state.value}")


def look_at_health(node: Node, memory: NodeState) -> tuple[NodeState, HealthVerdict]:
    """Look once at the health; a trial that has to stay healthy for a while says so.

    A verdict counts though it cannot be noted: a full disk must not hide why a trial goes back.

    Raises:
        CommandStoppedError: the service was told to stop: there is no verdict.
        StateError: that the old system is healthy cannot be noted.
    """
    boot = node.boot()
    verdict = _examine(node, boot.slot)
    if not verdict.healthy:
        log.warning("system is not healthy yet check=%s why=%s", verdict.failed, verdict.sentence)
        return _note(node, memory, "health-failing", verdict.sentence), verdict
    if memory.state is State.TRIAL:
        secs = node.settings.health.steady_secs
        sentence = f"the system is healthy and is confirmed once it has been so for {secs:g} s"
        return _note(node, memory, "health-steady", sentence) if secs else memory, verdict
    changes = {"healthy_boot": boot.boot_id, "waiting_code": "", "waiting_sentence": ""}
    return node.keep(memory, **changes), verdict


def _note(node: Node, memory: NodeState, code: str, sentence: str) -> NodeState:
    """Let people know how the last look went."""
    try:
        return node.keep(memory, waiting_code=code, waiting_sentence=sentence)
    except StateError as error:
        log.warning("health is not noted why=%s", error)
        return memory


def _examine(node: Node, slot: Slot) -> HealthVerdict:
    """Run the checks; an image that does not say what it is cannot be confirmed."""
    try:
        running = node.running()
    except ROOM_ERRORS as error:
        return HealthVerdict(failed=error.code, sentence=str(error))
    facts = {"BASCULE_SLOT": slot.value, "BASCULE_VERSION": running.version}
    return examine(node.settings.health, facts=facts, beat=node.beat, stopped=node.stop.is_set)


def confirm(node: Node, memory: NodeState) -> NodeState:
    """End the trial well: the booted slot becomes the one to stay with.

    The loader first, then the floor, then the memory: a cut in between repeats the trial's end.

    Raises:
        NothingToConfirmError: no trial is under way.
        PartitionsError: the loader's memory cannot be written.
    """
    if memory.state is not State.TRIAL:
        raise NothingToConfirmError(f"no trial is under way: the node is {memory.state.value}")
    running = node.running()
    boot = node.boot()
    node.loader.confirm(boot.slot)
    note_confirmed(Path(node.settings.node.run_folder))
    node.store.drop_marker()
    node.store.raise_floor(running.rollback_index)
    node.store.allow(running.version)
    update = memory.update
    node.store.remember(node.clock(), "confirmed", version=running.version, slot=boot.slot.value)
    if update is not None:
        node.report(_report(node, UPDATED, update, running))
    log.info("slot confirmed slot=%s version=%s", boot.slot.value, running.version)
    record = SlotRecord(version=running.version, rollback_index=running.rollback_index)
    return node.advance(
        memory,
        Event.HEALTHY,
        update=None,
        slots=memory.slots | {boot.slot.value: record},
        unverified=None if _is_of(memory.unverified, boot.slot) else memory.unverified,
        reset_versions=tuple(name for name in memory.reset_versions if name != running.version),
        healthy_boot=boot.boot_id,
        last_failure=None,
        last_check_code="",
        last_check_sentence="",
    )


def _is_of(unverified: Unverified | None, slot: Slot) -> bool:
    return unverified is not None and unverified.slot == slot.value


def fall_back(node: Node, memory: NodeState, why: HealthVerdict | None) -> NodeState:
    """End the trial badly: refuse the version, let the loader choose the old slot.

    The memory is in REBOOTING afterwards: the reboot is the next action.

    The version is denied before anything else, so that no cut can bring it back.

    Raises:
        PartitionsError: the loader's memory cannot be written; the loader's own count of tries
            still ends the trial.
        StateError: it cannot be noted; the loader was told and the reboot is ordered all the
            same, and the boot of the old slot shows what happened.
    """
    boot = node.boot()
    unverified = memory.unverified
    if unverified is not None and unverified.booted_in == boot.boot_id:
        return _leave_unverified(node, memory)
    version = _version_on_trial(node, memory)
    code = "trial-unhealthy" if why is not None else "trial-too-late"
    sentence = why.sentence if why is not None else "the system did not prove healthy in time"
    failure = Failure(
        code=code,
        sentence=f"version {version or 'unknown'}: {sentence}",
        hint="Look at the checks of [health] and at that version's journal.",
        at=node.clock(),
        version=version,
    )
    try:
        if version:
            node.store.deny(version, failure)
    except StateError:
        log.error("going back, though it cannot be noted version=%s code=%s", version, code)  # noqa: TRY400  # raised
        node.loader.reject(boot.slot)
        node.machine.reboot()
        raise
    node.store.remember(node.clock(), "trial failed", version=version, code=code, sentence=sentence)
    log.error("trial failed version=%s code=%s why=%s", version, code, sentence)
    event = Event.UNHEALTHY if why is not None else Event.TOO_LATE
    node.loader.reject(boot.slot)
    return node.advance(memory, event, last_failure=failure)


def _leave_unverified(node: Node, memory: NodeState) -> NodeState:
    """Go back from a slot that nobody verified; that is no version's fault.

    What its boot changed there is not what the journal names as flushed.

    Raises:
        PartitionsError: the loader's memory cannot be written.
        StateError: it cannot be noted.
    """
    slot = node.boot().slot
    sentence = f"slot {slot.value} was booted, though an install into it was never verified"
    failure = Failure(
        code=UNVERIFIED,
        sentence=sentence,
        hint="Somebody or the firmware chose it: look at the boot menu and the boot order.",
        at=node.clock(),
    )
    node.store.drop_journal()
    node.store.remember(node.clock(), "unverified boot", slot=slot.value, code=failure.code)
    log.error("going back code=%s why=%s", failure.code, sentence)
    node.loader.reject(slot)
    return node.advance(memory, Event.UNHEALTHY, last_failure=failure)


def _version_on_trial(node: Node, memory: NodeState) -> str:
    """Return what the trial is of; the image itself may be too broken to say so."""
    try:
        return node.running().version
    except ROOM_ERRORS:
        return memory.update.version if memory.update is not None else ""


def return_permit(node: Node, memory: NodeState) -> NodeState:
    """Give the permit back.

    Raises:
        PermitError: it cannot be told to the cluster; tried again later.
    """
    if node.permits().release():
        node.store.remember(node.clock(), "permit returned")
        log.info("permit returned")
    return node.keep(memory, permit="none")


def return_own_permit(node: Node, memory: NodeState) -> bool:
    """Give the permit back because a person says so; returns whether one was held.

    Raises:
        IllegalTransitionError: the node is down by our doing at this moment.
        PermitError: it cannot be told to the cluster.
    """
    if memory.state in {State.REBOOTING, State.TRIAL}:
        raise IllegalTransitionError(f"the permit is in use: the node is {memory.state.value}")
    held = node.permits().release()
    node.keep(memory, permit="none")
    return held


def roll_back(node: Node, memory: NodeState) -> NodeState:
    """Take back an armed update, or choose the other slot; returns the memory after it.

    Raises:
        RollbackRefusedError: the other slot is not whole and confirmed, or below the floor.
        IllegalTransitionError: something is under way that must end first.
    """
    if memory.state in {State.ARMED, State.INSTALLING}:
        return _cancel(node, memory)
    if memory.state is not State.IDLE:
        raise IllegalTransitionError(f"no rollback while the node is {memory.state.value}")
    boot = node.boot()
    running = node.running()
    other = boot.slot.other
    if _is_of(memory.unverified, other):
        raise RollbackRefusedError(  # whatever the loader's memory has come to say of it
            f"an install into slot {other.value} was begun and not verified"
        )
    if not node.loader.read().slots[other].confirmed:
        raise RollbackRefusedError(f"slot {other.value} holds no system that was confirmed")
    facts = node.machine.image_facts(other)
    floor = max(node.store.read_floor(), running.rollback_index)  # the file may be lost
    if facts.rollback_index < floor:
        raise RollbackRefusedError(
            f"version {facts.version} in slot {other.value} has rollback index "
            f"{facts.rollback_index}, this node accepts {floor} and above"
        )
    _deny(node, running.version, f"a person rolled back from version {running.version}")
    node.store.allow(facts.version)
    update = Update(
        version=facts.version,
        rollback_index=facts.rollback_index,
        previous_version=running.version,
        slot=other.value,
        began=node.clock(),
        rollback=True,
    )
    node.store.remember(node.clock(), "rollback", version=facts.version)
    # The memory first: after a cut in between nothing boots that nobody remembers.
    memory = node.advance(memory, Event.ROLLBACK_ORDERED, update=update, reboot_ordered=False)
    node.arm(other)
    return memory


def reset(node: Node, memory: NodeState) -> NodeState:
    """Take an armed update back without refusing its version; nothing when nothing is armed.

    Raises:
        IllegalTransitionError: something is under way that must end first.
    """
    if memory.state in {State.IDLE, State.TRIAL}:
        return memory
    if memory.state is not State.ARMED:
        raise IllegalTransitionError(f"no reset while the node is {memory.state.value}")
    return _cancel(node, memory, denies=False)


def _cancel(node: Node, memory: NodeState, *, denies: bool = True) -> NodeState:
    """Take an update back that has not been booted."""
    update = memory.update
    if update is not None:
        node.store.remember(node.clock(), "cancelled", version=update.version)
        if denies and not update.rollback and update.version:
            _deny(node, update.version, f"a person took version {update.version} back")
        if update.origin == "offered":  # a plain server waits for its end, and offers nothing else
            node.report(_cancelled(node, update))
    memory = withdraw(node, memory)
    booted = node.boot().slot
    if update is not None and update.rollback:
        node.loader.confirm(booted.other)  # as it was: it can still be rolled back to
        node.loader.confirm(booted)  # the target again
        node.store.allow(update.previous_version)
    else:
        node.loader.disarm(booted.other)
    node.store.drop_marker()
    node.store.drop_journal()
    node.progress.clear()
    server = node.settings.server
    due = next_check(
        node.clock(),
        interval=timedelta(seconds=server.poll_interval_secs),
        jitter_share=server.poll_jitter_share,
        chance=node.chance(),
        failures=0,
    )
    return node.advance(memory, Event.CANCELLED, update=None, next_check=due, reboot_ordered=False)


def _cancelled(node: Node, update: Update) -> Report:
    return Report(
        event_type=FAILED[0],
        event_result=FAILED[1],
        at=node.clock(),
        version=update.previous_version,
        code="rolled-back",
        sentence=f"a person took version {update.version} back",
        next_version=update.version,
        downloaded=update.downloaded,
    )


def _deny(node: Node, version: str, sentence: str) -> None:
    node.store.deny(
        version,
        Failure(
            code="rolled-back",
            sentence=sentence,
            hint="A newer version is taken by itself; `bascule update --force` takes this one.",
            at=node.clock(),
            version=version,
        ),
    )


def _report(node: Node, kind: tuple[int, int], update: Update, running: ImageFacts) -> Report:
    return Report(
        event_type=kind[0],
        event_result=kind[1],
        at=node.clock(),
        version=running.version,
        previous_version=update.previous_version,
        next_version=update.version,
        downloaded=update.downloaded,
    )
