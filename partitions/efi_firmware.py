"""A model of the UEFI boot manager: BootNext once, else BootOrder, and entries that are inactive.

The variables as a value, the firmware's choice as pure functions, and `boot`, which removes
BootNext as the firmware does before it starts anything. Facts: UEFI 2.10, chapters 3.1 and 3.3, and
what OVMF does.

Not in the model: an entry that cannot be started, after which the firmware goes on in its order.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from partitions.efi_variables import EfiVariables, Variables
from partitions.errors import NothingBootableError
from partitions.slots import Slot

log = logging.getLogger(__name__)

BOOT_ORDER: Final = "BootOrder"
BOOT_NEXT: Final = "BootNext"
_ENTRY: Final = re.compile(r"Boot(?P<number>[0-9A-F]{4})")
_HEAD: Final = struct.Struct("<IH")  # attributes, bytes of the device path
_ACTIVE: Final = 0x1
_NUMBER_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class BootOption:
    """A boot entry: the variable `Boot0001`.

    Attributes:
        number: 1 for `Boot0001`.
        description: what people and `efibootmgr` call it.
        active: whether the firmware starts it by itself.
    """

    number: int
    description: str
    active: bool

    @classmethod
    def parse(cls, name: str, value: bytes) -> Self | None:
        """Read a variable; nothing when it is no boot entry, or one that is cut short."""
        entry = _ENTRY.fullmatch(name)
        if not entry or len(value) < _HEAD.size:
            return None
        attributes, _ = _HEAD.unpack_from(value)
        text, end, _ = value[_HEAD.size :].decode("utf-16-le", errors="replace").partition("\0")
        if not end:
            return None
        return cls(int(entry["number"], 16), text, bool(attributes & _ACTIVE))

    @property
    def slot(self) -> Slot | None:
        """The slot that it starts, or nothing for somebody else's."""
        return _SLOTS.get(self.description)


def description_of(slot: Slot) -> str:
    """Return what the entry of a slot is called."""
    return f"bascule-{slot.value}"


_SLOTS: Final = MappingProxyType({description_of(slot): slot for slot in Slot})


@dataclass(frozen=True, slots=True)
class FirmwareMemory:
    """What the boot manager reads at power-on.

    Attributes:
        options: the boot entries by number.
        order: BootOrder.
        once: BootNext.
    """

    options: Mapping[int, BootOption]
    order: tuple[int, ...] = ()
    once: int | None = None

    @classmethod
    def of(cls, variables: Variables) -> Self:
        """Read the variables; those of another length than they must have count as missing.

        Raises:
            EfiVariableError: they cannot be read.
        """
        read = (
            BootOption.parse(name, variables.read(name) or b"")
            for name in variables.names()
            if _ENTRY.fullmatch(name)
        )
        order = variables.read(BOOT_ORDER) or b""
        once = variables.read(BOOT_NEXT) or b""
        return cls(
            options={option.number: option for option in read if option},
            order=numbers(order),
            once=numbers(once)[0] if len(once) == _NUMBER_BYTES else None,
        )

    @property
    def next(self) -> BootOption | None:
        """The entry that the firmware starts: BootNext, else the first of BootOrder."""
        queue = self.order if self.once is None else (self.once, *self.order)
        found = (self.options.get(number) for number in queue)
        return next((option for option in found if option and option.active), None)


def numbers(value: bytes) -> tuple[int, ...]:
    """Read a list of numbers of boot entries."""
    whole = value[: len(value) - len(value) % _NUMBER_BYTES]
    return tuple(number for (number,) in struct.iter_unpack("<H", whole))


def packed(order: Iterable[int]) -> bytes:
    """Write a list of numbers of boot entries."""
    return b"".join(struct.pack("<H", number) for number in order)


def boot(folder: Path) -> Slot:
    """Boot once: forget BootNext, and say which slot it is.

    Args:
        folder: the variables, one file each.

    Raises:
        NothingBootableError: no entry can be started, or the one that is started is of no slot.
        EfiVariableError: the variables cannot be used.
    """
    variables = EfiVariables(folder)
    chosen = FirmwareMemory.of(variables).next
    variables.remove(BOOT_NEXT)
    if chosen is None:
        raise NothingBootableError(f"{folder}: neither BootNext nor BootOrder names an entry")
    if chosen.slot is None:
        raise NothingBootableError(
            f"the firmware starts Boot{chosen.number:04X} {chosen.description!r}, of no slot"
        )
    log.info("firmware boots slot=%s entry=Boot%04X", chosen.slot.value, chosen.number)
    return chosen.slot
