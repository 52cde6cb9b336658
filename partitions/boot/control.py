"""What a boot loader remembers of two slots: the contract that every keeper keeps.

A keeper is one file beside this one and one line in `__init__.py`; the tests in
`tests/unit/partitions/test_boot_contract.py` run over all of them.

Rules for callers, which no keeper can know by itself:

* Disarm the passive slot before its first byte is written, arm it after it was read back.
* Confirm the booted slot before an update, else nothing is left to fall back to.
* A keeper that is told which slot is booted refuses to disarm it; tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from partitions.slots import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """What the loader remembers of one slot.

    Attributes:
        armed: whether the loader may choose it at all.
        tries_left: boots left before an unconfirmed slot is given up.
        confirmed: whether it has booted and was found healthy.
    """

    armed: bool
    tries_left: int
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BootState:
    """What the loader would do next.

    Attributes:
        target: the slot that it would choose, or nothing when it finds none of ours.
        slots: what it remembers of each.
    """

    target: Slot | None
    slots: Mapping[Slot, SlotState]


class BootControl(Protocol):
    """The boot loader's memory, as far as we may touch it.

    Each verb is durable when it returns, was read back, and doing it twice is the same as once. At
    every instant of a verb, a power cut included, the loader finds the state before or the state
    after. No verb makes a machine unbootable that was bootable. All raise `BootControlError` when
    the memory cannot be kept as asked for, and `TableError` or `DeviceError` from below.
    """

    @property
    def max_tries(self) -> int:
        """The most tries that the loader can count."""

    def read(self) -> BootState:
        """Return what the loader remembers and would do next."""

    def disarm(self, slot: Slot) -> None:
        """Make the loader never choose `slot`, whatever it held before.

        Raises:
            SlotBootedError: it is the booted one.
            BootControlError: nothing bootable would be left.
        """

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Make `slot` the target, on trial: not confirmed, `tries` boots from 1 to `max_tries`.

        The other slot keeps its tries and confirmation and comes next. Arming the booted slot
        during its own trial gives tries back.
        """

    def confirm(self, slot: Slot) -> None:
        """Make `slot` the target for good; its tries are no longer counted."""

    def reject(self, slot: Slot) -> None:
        """Make the loader never choose `slot` again, and the other one the target.

        Unlike `disarm`, this is for the booted slot too: its trial has failed.

        Raises:
            BootControlError: the other slot is not armed.
        """
