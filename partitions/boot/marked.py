"""The verbs of `BootControl` for loaders whose script keeps an order and a mark for each slot.

What they make of the memory is the same for GRUB and U-Boot; where it lies and how it is written is
for the file of each.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Generic, TypeVar

from partitions.boot.control import BootState, SlotState
from partitions.errors import BootControlError, SlotBootedError
from partitions.marks import NEVER, TRIES_MAX, Mark, Marks
from partitions.slots import Slot

M = TypeVar("M", bound=Marks)


class MarkedSlots(abc.ABC, Generic[M]):
    """Keeps `BootControl` by changing a `Marks`."""

    def __init__(self, booted: Slot | None) -> None:
        """Note which slot runs; `disarm` refuses it."""
        self._booted = booted

    @property
    def max_tries(self) -> int:
        """The most tries that one digit can count."""
        return TRIES_MAX

    def read(self) -> BootState:
        """Return what the loader remembers and would do next."""
        memory = self._recall()
        return BootState(
            target=memory.target,
            slots={slot: _state(mark) for slot, mark in memory.marks.items()},
        )

    def disarm(self, slot: Slot) -> None:
        """Unmark the slot: not confirmed, no tries."""
        if slot is self._booted:
            raise SlotBootedError(f"slot {slot.value} is booted, it is not disarmed")
        self._change("disarmed", slot, lambda memory: memory.marked(slot, NEVER))

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Give the slot its tries, not confirmed, and name it first."""
        if not 1 <= tries <= TRIES_MAX:
            raise BootControlError(
                f"{tries} tries for slot {slot.value} are not in 1 to {TRIES_MAX}"
            )
        trial = Mark(tries=tries)
        self._change("armed", slot, lambda memory: memory.marked(slot, trial).preferring(slot))

    def confirm(self, slot: Slot) -> None:
        """Mark the slot confirmed, and name it first."""
        proven = Mark(confirmed=True)
        self._change("confirmed", slot, lambda memory: memory.marked(slot, proven).preferring(slot))

    def reject(self, slot: Slot) -> None:
        """Unmark the slot, and name the other one first."""
        self._change("rejected", slot, lambda memory: memory.rejecting(slot))

    @abc.abstractmethod
    def _recall(self) -> M:
        """Return what the loader would read."""

    @abc.abstractmethod
    def _change(self, verb: str, slot: Slot, edit: Callable[[M], M]) -> None:
        """Read, edit, write and read back; nothing is written when all of it stands there already.

        `verb` and `slot` are for messages.
        """


def refuse_stop(verb: str, slot: Slot, before: Marks, after: Marks) -> None:
    """Refuse a change that makes a machine unbootable that was bootable.

    Raises:
        BootControlError: nothing bootable would be left.
    """
    if before.target and not after.target:
        raise BootControlError(f"slot {slot.value} is not {verb}: nothing bootable would be left")


def _state(mark: Mark) -> SlotState:
    return SlotState(armed=mark.bootable, tries_left=mark.tries, confirmed=mark.confirmed)
