"""Slots and where they lie: from the names in the settings to bytes on a disk.

A slot is a set of named parts ("usr", "kernel"); each part is one partition, found by label or
PARTUUID in the GPT of one disk. On a disk file the bytes lie at an offset and no root is needed. On
a block device the kernel's own partition node is preferred: it can be opened exclusively while
the rest of the disk is mounted. Which slot is booted is not known here (`booted.py`).
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from partitions.devices import DEV, block_device, device_number, node_of, partitions_of, whole_disk
from partitions.errors import PartitionAmbiguousError, PartitionStaleError, PartitionUnknownError
from partitions.gpt import Entry, Table
from partitions.table import read_table


class Slot(enum.Enum):
    """One of the two places for a whole OS; the value is how it is written everywhere."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Slot:
        """The slot that this one is not."""
        return Slot.B if self is Slot.A else Slot.A


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRef:
    """The name of a partition: exactly one of the two is given.

    Attributes:
        label: its GPT name, compared exactly.
        partuuid: its GPT GUID.
    """

    label: str | None = None
    partuuid: uuid.UUID | None = None

    def __post_init__(self) -> None:
        """Refuse none or both."""
        if (self.label is None) == (self.partuuid is None):
            raise ValueError("a partition is named either by label or by PARTUUID")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "PARTUUID=…", "PARTLABEL=…" or a bare label.

        Raises:
            ValueError: the GUID has no such form, or the label is empty.
        """
        kind, equals, value = text.partition("=")
        if equals and kind == "PARTUUID":
            return cls(partuuid=uuid.UUID(value))
        label = value if equals and kind == "PARTLABEL" else text
        if not label:
            raise ValueError("a partition label is empty")
        return cls(label=label)

    def matches(self, entry: Entry) -> bool:
        """Tell whether it names this partition."""
        if self.label is not None:
            return entry.name == self.label
        return entry.part_guid == self.partuuid

    @property
    def words(self) -> str:
        """How it is written in settings and messages."""
        if self.label is not None:
            return f"PARTLABEL={self.label}"
        return f"PARTUUID={self.partuuid}"


SlotLayout: TypeAlias = Mapping[Slot, Mapping[str, PartRef]]
"""For both slots: the parts by name, and the partition of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The bytes of one part of a slot.

    Attributes:
        path: what to open: a partition's node, a whole disk or a disk file.
        offset: where the part begins in it, in bytes.
        size: how many bytes it has.
        partuuid: its GPT GUID, lower case.
        label: its GPT name.
        number: its number in the table, from 1.
    """

    path: Path
    offset: int
    size: int
    partuuid: str
    label: str
    number: int = 0


def resolve(disk: Path, layout: SlotLayout) -> dict[Slot, dict[str, Region]]:
    """Find every part of both slots on a disk.

    Args:
        disk: a disk file, a whole-disk device, or any partition of the disk.
        layout: the partitions' names.

    Raises:
        PartitionUnknownError: a name leads nowhere.
        PartitionAmbiguousError: a name leads to two partitions, or two names to one.
        PartitionStaleError: the kernel's partitions are not those of the table.
        TableError, DeviceError: the disk's table cannot be read.
    """
    disk = whole_disk(disk).resolve()
    table = read_table(disk)
    places = entries_of(table, layout, disk=disk)
    return {
        slot: {part: _region(disk, table, entry) for part, entry in parts.items()}
        for slot, parts in places.items()
    }


def entries_of(table: Table, layout: SlotLayout, *, disk: Path) -> dict[Slot, dict[str, Entry]]:
    """Find the table's entry for every part of both slots; no two parts share one.

    Raises:
        PartitionUnknownError: a name leads nowhere.
        PartitionAmbiguousError: a name leads to two partitions, or two names to one.
    """
    owners: dict[int, str] = {}
    found: dict[Slot, dict[str, Entry]] = {slot: {} for slot in layout}
    for slot, parts in layout.items():
        for part, ref in parts.items():
            entry = find(table, ref, disk=disk)
            owner = f"part {part} of slot {slot.value}"
            first = owners.setdefault(entry.number, owner)
            if first != owner:
                raise PartitionAmbiguousError(
                    f"partition {entry.number} of {disk} is named as {first} and as {owner}"
                )
            found[slot][part] = entry
    return found


def find(table: Table, ref: PartRef, *, disk: Path) -> Entry:
    """Return the one partition that `ref` names; `disk` is for the message.

    Raises:
        PartitionUnknownError: there is none.
        PartitionAmbiguousError: there are several.
    """
    matches = [entry for entry in table.entries if ref.matches(entry)]
    if not matches:
        names = ", ".join(repr(entry.name) for entry in table.entries) or "none at all"
        raise PartitionUnknownError(f"{disk} has no partition {ref.words}; it has {names}")
    if len(matches) > 1:
        numbers = ", ".join(str(entry.number) for entry in matches)
        raise PartitionAmbiguousError(f"{ref.words} names partitions {numbers} of {disk}")
    return matches[0]


def _region(disk: Path, table: Table, entry: Entry) -> Region:
    first, size = entry.first_lba * table.sector_size, entry.sectors * table.sector_size
    path, offset = _node(disk, entry, first=first, size=size) or (disk, first)
    return Region(
        path=path,
        offset=offset,
        size=size,
        partuuid=str(entry.part_guid),
        label=entry.name,
        number=entry.number,
    )


def _node(disk: Path, entry: Entry, *, first: int, size: int) -> tuple[Path, int] | None:
    """Return the kernel's node for an entry, when the disk is a device and has one."""
    number = device_number(disk.stat())
    if number is None:
        return None
    known = {device.partition: device for device in partitions_of(block_device(number))}
    device = known.get(entry.number)
    if device is None:
        return None
    if (device.place.first_byte, device.place.size) != (first, size):
        raise PartitionStaleError(
            f"the kernel has partition {entry.number} of {disk} at byte {device.place.first_byte} "
            f"with {device.place.size} bytes, the table at {first} with {size}"
        )
    return node_of(device, dev=DEV), 0
