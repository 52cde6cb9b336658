"""The firmware's variables as plain files, and in memory with what a cut of the power can leave."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from partitions.efi_firmware import BOOT_ORDER, description_of, packed
from partitions.efi_variables import EfiVariables
from partitions.slots import Slot

ACTIVE = 0x1
END_OF_PATH = b"\x7f\xff\x04\x00"


def boot_option(description: str, *, active: bool = True) -> bytes:
    """Return the value of a boot entry as the firmware keeps it, with an empty device path."""
    head = struct.pack("<IH", ACTIVE if active else 0, len(END_OF_PATH))
    return head + f"{description}\0".encode("utf-16-le") + END_OF_PATH


def make_variables(folder: Path) -> None:
    """Make what the firmware keeps: an entry of each slot and a shell, slot A confirmed."""
    folder.mkdir(exist_ok=True)
    variables = EfiVariables(folder)
    variables.write("Boot0003", boot_option("UEFI Shell"))
    variables.write("Boot0000", boot_option(description_of(Slot.A)))
    variables.write("Boot0001", boot_option(description_of(Slot.B)))
    variables.write(BOOT_ORDER, packed([0, 3]))


class VariablesSim:
    """Keeps `efi_variables.Variables` in a dictionary.

    Attributes:
        values: name to value.
        cuts: what a cut leaves after each change since the start.
    """

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self.values = dict(values)
        self.cuts: list[Mapping[str, bytes]] = []

    def names(self) -> list[str]:
        return sorted(self.values)

    def read(self, name: str) -> bytes | None:
        return self.values.get(name)

    def write(self, name: str, value: bytes) -> None:
        assert value, "a variable without a value is none"
        self.values = {**self.values, name: value}
        self.cuts.append(self.values)

    def remove(self, name: str) -> None:
        if name in self.values:
            self.values = {kept: value for kept, value in self.values.items() if kept != name}
            self.cuts.append(self.values)
