"""What a process makes of what it finds: the memory, the boot, the loader. No I/O happens here.

Run once at every start, before anything else. Whatever the last process was doing, killed at
any instant, the answer is one legal move of the lifecycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from updater.causes import RESET_ONCE, Evidence, cause_of
from updater.lifecycle import Event, State, step
from updater.state import RESETS_MAX, Failure, NodeState, Unverified, Update

if TYPE_CHECKING:
    from partitions.boot.control import BootState
    from updater.machine import Boot

# In these a boot may come up in a slot that no update names.
_NAMELESS: Final = frozenset({State.IDLE, State.CHECKING, State.TRIAL, State.REBOOTING})
# In these it had not been told to boot any other slot.
_UNARMED: Final = frozenset({State.IDLE, State.CHECKING, State.INSTALLING, State.VERIFYING})
# In these the loader had been told to boot the update's slot.
_CHOSEN: Final = frozenset({State.ARMED, State.REBOOTING, State.TRIAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was found, and the memory after it.

    Attributes:
        node: the new memory, to be written first.
        event: what happened, in the lifecycle's words.
        fallen_back: the update that did not hold, with why; to be reported, and denied
            unless a reset is forgiven.
    """

    node: NodeState
    event: Event
    fallen_back: tuple[Update, Failure] | None = None


def recover(
    node: NodeState,
    boot: Boot,
    loader: BootState,
    now: datetime,
    evidence: Evidence = Evidence(),  # noqa: B008  # frozen, and there is none most of the time
) -> Recovery:
    """Return where the node stands now.

    Args:
        node: the memory as it was last written.
        boot: the present boot.
        loader: what the boot loader's memory says.
        now: the time.
        evidence: what else a failed trial left behind.
    """
    event = _event(node, boot, loader)
    again = _to_be_tried_again(node, evidence) if event is Event.BOOTED_OLD else None
    if again is not None:
        node, event = msgspec.structs.replace(node, update=again), Event.BOOTED_UNTRIED
    changes: dict[str, object] = {"state": step(node.state, event), "boot_id": boot.boot_id}
    if event is not Event.RESTARTED:
        changes |= {"reboot_ordered": False, "waiting_code": "", "waiting_sentence": ""}
    if node.boot_id != boot.boot_id:
        changes |= {"healthy_boot": ""}
    if event is Event.BOOTED_UNVERIFIED:
        changes |= {"unverified": _booted(node.unverified, boot)}
    changes |= {"update": _carried_on(node, event, evidence)}
    fallen_back: tuple[Update, Failure] | None = None
    if event is Event.BOOTED_OLD and _was_chosen(node) and node.update is not None:
        failure = cause_of(node, node.update, loader, evidence, now=now)
        changes |= {"last_failure": failure}
        fallen_back = (node.update, failure)
        if failure.code == RESET_ONCE:  # tried again as soon as it is offered again
            versions = (*node.reset_versions, node.update.version)[-RESETS_MAX:]
            changes |= {"reset_versions": versions, "next_check": None, "checks_failed": 0}
    after = msgspec.structs.replace(node, **changes)
    return Recovery(node=after, event=event, fallen_back=fallen_back)


def _event(node: NodeState, boot: Boot, loader: BootState) -> Event:
    if node.boot_id == boot.boot_id:
        return _within_the_boot(node, loader)
    return _before_arming(node, boot, loader) or _of_a_boot(node, boot, loader)


def _before_arming(node: NodeState, boot: Boot, loader: BootState) -> Event | None:
    """Tell what a boot of a slot is that we did not arm: nothing, if it is none of that kind.

    A boot menu, or the firmware's own order, chose it. It may be half an image unless it was read
    back since it was written to, which is noted before it is armed; or unless nothing was written.
    """
    update, booted = node.update, boot.slot.value
    begun = node.unverified is not None and node.unverified.slot == booted
    writing = node.state in {State.INSTALLING, State.VERIFYING}
    named = writing and update is not None and update.slot == booted
    if named and update is not None and update.verified:
        return None
    if begun and node.state is not State.ARMED and (update is None or node.state in _UNARMED):
        return Event.BOOTED_UNVERIFIED
    if not named:
        return None
    untouched = node.state is State.INSTALLING and loader.slots[boot.slot].confirmed
    return Event.CANCELLED if untouched else Event.BOOTED_UNVERIFIED


def _of_a_boot(node: NodeState, boot: Boot, loader: BootState) -> Event:
    target = node.update.slot if node.update is not None else ""
    if boot.slot.value == target and node.state not in {State.IDLE, State.CHECKING}:
        return Event.BOOTED_NEW
    if node.state in {State.ARMED, State.REBOOTING} and _still_to_be_tried(node, loader):
        return Event.BOOTED_UNTRIED
    if node.state is State.ARMED and _never_armed(node, loader):
        return Event.CANCELLED
    if node.state in _NAMELESS and not target and not loader.slots[boot.slot].confirmed:
        return Event.BOOTED_NEW  # nobody remembers why, but it has to prove itself
    return Event.BOOTED_OLD


def _booted(unverified: Unverified | None, boot: Boot) -> Unverified:
    """Note one more boot of the slot that nobody verified."""
    boots = unverified.boots if unverified is not None else 0
    return Unverified(slot=boot.slot.value, booted_in=boot.boot_id, boots=boots + 1)


def _within_the_boot(node: NodeState, loader: BootState) -> Event:
    """Tell what a new process finds: an armed slot may have been disarmed just before the end."""
    update = node.update
    if node.state is not State.ARMED or update is None:
        return Event.RESTARTED
    if loader.target is not None and loader.target.value == update.slot:
        return Event.RESTARTED
    taken_back = update.withdrawn or update.rollback
    return Event.CANCELLED if taken_back else Event.SUPERSEDED


def _still_to_be_tried(node: NodeState, loader: BootState) -> bool:
    """Tell whether the loader would still choose the armed slot: it was never booted."""
    target = loader.target
    if node.update is None or target is None or target.value != node.update.slot:
        return False
    return loader.slots[target].tries_left > 0


def _to_be_tried_again(node: NodeState, evidence: Evidence) -> Update | None:
    """Return the update whose one boot somebody else may have used up, None when nobody did.

    Nobody looked at the loader's memory before this reboot, as we do before ours, and nothing is
    left of a boot of the new slot. Then it is tried again, once: it may have failed, too.
    """
    update = node.update
    if update is None or not evidence.counts_once or node.state is not State.ARMED:
        return None
    seen = update.tries_used > 0 or evidence.guarded_in or evidence.denied is not None
    if seen or update.withdrawn or update.lost_once:
        return None
    return msgspec.structs.replace(update, lost_once=True)


def _never_armed(node: NodeState, loader: BootState) -> bool:
    """Tell whether the power failed between noting a rollback and telling the loader."""
    update = node.update
    if update is None or not update.rollback:
        return False
    return any(slot.value == update.slot and s.confirmed for slot, s in loader.slots.items())


def _was_chosen(node: NodeState) -> bool:
    """Tell whether the loader had been told to boot the update's slot, and was to do it."""
    if node.update is None or node.update.withdrawn:
        return False
    return node.state in _CHOSEN


def _carried_on(node: NodeState, event: Event, evidence: Evidence) -> Update | None:
    """Return the update that the memory goes on with: nothing is being withdrawn any more."""
    update = node.update
    ended = event is Event.BOOTED_OLD and node.state in _CHOSEN
    if update is None or ended or event in {Event.CANCELLED, Event.BOOTED_UNVERIFIED}:
        return None
    update = msgspec.structs.replace(update, withdrawn=False)
    if event is not Event.BOOTED_NEW:
        return update
    tries_used = update.tries_used + 1
    return msgspec.structs.replace(update, tries_used=tries_used, guarded_in=evidence.guarded_in)
