"""The boot loader's memory in the firmware itself: BootNext is a trial, BootOrder what is proven.

Each slot has one boot entry of the firmware, called `bascule-a` or `bascule-b`; bascule does not
make or change entries. BootNext counts one boot, as the firmware forgets it before it starts what
it names. In BootOrder the target comes first, then the other slot if it is confirmed, then
everybody else in their order. The booted slot behind the other one is not confirmed: some firmware
puts every valid entry back at the end of BootOrder, also that of a trial under way.

Each variable changes by itself, whole or not at all. Where a verb changes both, their order is such
that the firmware finds in between what it would have started before or what it shall start after.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from partitions.boot.control import BootState, SlotState
from partitions.efi_firmware import (
    BOOT_NEXT,
    BOOT_ORDER,
    TRIES_MAX,
    FirmwareMemory,
    description_of,
    packed,
)
from partitions.efi_variables import Variables
from partitions.errors import BootControlError, EfiEntryError, EfiVariableError, SlotBootedError
from partitions.slots import Slot

log = logging.getLogger(__name__)


class EfiBootEntries:
    """Keeps `BootControl` in BootOrder and BootNext."""

    def __init__(self, variables: Variables, *, booted: Slot | None = None) -> None:
        """Name the variables; nothing is read before the first call.

        Args:
            variables: those of the firmware.
            booted: the slot that runs; `disarm` refuses it.
        """
        self._variables = variables
        self._booted = booted

    @property
    def max_tries(self) -> int:
        """The one boot that BootNext counts."""
        return TRIES_MAX

    def read(self) -> BootState:
        """Return what the firmware remembers and would do next.

        A slot without an entry is not armed; one that is not active is not found in BootOrder.

        Raises:
            EfiVariableError: the variables cannot be read, or there is no boot entry at all.
        """
        memory = FirmwareMemory.of(self._variables)
        if not memory.options:  # an empty mount point is no firmware that remembers nothing
            raise EfiVariableError("there is no boot entry at all: efivarfs is not mounted")
        return BootState(
            target=memory.next.slot if memory.next else None,
            slots={slot: _state(memory, slot, booted=self._booted) for slot in Slot},
        )

    def disarm(self, slot: Slot) -> None:
        """Take the slot out of BootOrder and BootNext."""
        if slot is self._booted:
            raise SlotBootedError(f"slot {slot.value} is booted, it is not disarmed")
        memory = FirmwareMemory.of(self._variables)
        number = _entry(memory, slot)
        if _state(memory, slot).armed and not _state(memory, slot.other).armed:
            raise BootControlError(
                f"slot {slot.value} is not disarmed: nothing bootable would be left"
            )
        order = [other for other in memory.order if other != number]
        self._write("disarmed", slot, memory, order=order, once=_without(memory, slot))

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Set BootNext to the slot, and take it out of BootOrder; the other comes first there."""
        if tries != TRIES_MAX:
            raise BootControlError(f"{tries} tries for slot {slot.value}: BootNext counts one")
        memory = FirmwareMemory.of(self._variables)
        number = _entry(memory, slot)
        if _state(memory, slot.other).tries_left:
            raise BootControlError(
                f"slot {slot.value} is not armed: BootNext holds the trial of {slot.other.value}"
            )
        order = _fronted(memory, slot.other)
        # BootNext first: without it the firmware would start the other one.
        self._write("armed", slot, memory, order=order, once=number, once_first=True)

    def confirm(self, slot: Slot) -> None:
        """Put the slot first in BootOrder, and take both out of BootNext."""
        memory = FirmwareMemory.of(self._variables)
        order = [_entry(memory, slot), *_fronted(memory, slot.other)]
        ours = _numbers(memory, slot) | _numbers(memory, slot.other)
        once = None if memory.once in ours else memory.once
        self._write("confirmed", slot, memory, order=order, once=once)

    def reject(self, slot: Slot) -> None:
        """Take the slot out of BootOrder and BootNext, and put the other one first."""
        memory = FirmwareMemory.of(self._variables)
        if not _state(memory, slot.other).armed:
            raise BootControlError(
                f"slot {slot.value} cannot be rejected: slot {slot.other.value} would not boot"
            )
        order = _fronted(memory, slot.other)
        self._write("rejected", slot, memory, order=order, once=_without(memory, slot))

    def _write(
        self,
        verb: str,
        slot: Slot,
        memory: FirmwareMemory,
        *,
        order: Sequence[int],
        once: int | None,
        once_first: bool = False,
    ) -> None:
        """Write what is not so yet.

        BootNext decides as long as it is there. So BootOrder may change under it; but where
        BootNext is what puts the slot before the other, it comes first.
        """
        if (tuple(order), once) == (memory.order, memory.once):
            return
        queues = [
            (BOOT_ORDER, memory.order, tuple(order)),
            (BOOT_NEXT, _queue(memory.once), _queue(once)),
        ]
        for name, before, after in reversed(queues) if once_first else queues:
            if after and after != before:
                self._variables.write(name, packed(after))
            elif after != before:
                self._variables.remove(name)
        words = ",".join(f"{number:04X}" for number in order)
        log.info("slot %s slot=%s order=%s", verb, slot.value, words)


def _queue(once: int | None) -> tuple[int, ...]:
    return () if once is None else (once,)


def _numbers(memory: FirmwareMemory, slot: Slot) -> set[int]:
    return {option.number for option in memory.options.values() if option.slot is slot}


def _without(memory: FirmwareMemory, slot: Slot) -> int | None:
    """Return BootNext, or nothing when it names that slot; a person's choice stays."""
    return None if memory.once in _numbers(memory, slot) else memory.once


def _fronted(memory: FirmwareMemory, slot: Slot) -> list[int]:
    """Return BootOrder with that slot in front, when it is there, and without the other slot."""
    numbers, others = _numbers(memory, slot), _numbers(memory, slot.other)
    rest = [number for number in memory.order if number not in others]
    return sorted(rest, key=lambda number: number not in numbers)


def _entry(memory: FirmwareMemory, slot: Slot) -> int:
    """Return the number of the slot's entry.

    Raises:
        EfiEntryError: there is none, or not one alone, or it is not active.
    """
    numbers = _numbers(memory, slot)
    if len(numbers) != 1:
        raise EfiEntryError(f"{len(numbers)} boot entries are called {description_of(slot)!r}")
    (number,) = numbers
    if not memory.options[number].active:
        raise EfiEntryError(f"Boot{number:04X} {description_of(slot)!r} is not active")
    return number


def _state(memory: FirmwareMemory, slot: Slot, *, booted: Slot | None = None) -> SlotState:
    numbers = _numbers(memory, slot)
    place = _place(memory, slot)
    ahead = _place(memory, slot.other)
    confirmed = place is not None and not (slot is booted and ahead is not None and ahead < place)
    on_trial = memory.once in numbers and not confirmed
    armed = place is not None or on_trial
    return SlotState(armed=armed, tries_left=int(on_trial), confirmed=confirmed)


def _place(memory: FirmwareMemory, slot: Slot) -> int | None:
    """Return where in BootOrder the slot's first active entry is, or nothing."""
    active = {number for number in _numbers(memory, slot) if memory.options[number].active}
    return next((at for at, number in enumerate(memory.order) if number in active), None)
