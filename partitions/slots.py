"""Slots and where they lie: from the names in the settings to bytes on a disk.

A slot is a set of named parts ("usr", "kernel"); each part is one partition, found by label or
PARTUUID in the GPT of one disk, or a file on the loader's partition (`boot_files.py`). On a disk
file the bytes lie at an offset and no root is needed. On a block device the kernel's own partition
node is preferred: it can be opened exclusively while the rest of the disk is mounted. Which slot is
booted is not known here (`booted.py`).
"""

from __future__ import annotations

import enum
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, TypeAlias

from partitions.devices import DEV, block_device, device_number, node_of, partitions_of, whole_disk
from partitions.errors import (
    BootFileSharedError,
    PartitionAmbiguousError,
    PartitionStaleError,
    PartitionUnknownError,
)
from partitions.gpt import Entry, Table
from partitions.table import read_table

FILE_MAX_CHARS: Final = 240  # of a boot file's path; loaders and FAT allow little more
# Names that mean the same on FAT and everywhere: ASCII, no end that FAT drops, no alias ("LIN~1").
_FILE: Final = re.compile(r"(/[A-Za-z0-9_+@=-][A-Za-z0-9._+@=-]*(?<!\.))+")
_STAT_BLOCK: Final = 512  # st_blocks counts in these, whatever the file system does


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
    """Where a part lies: exactly one of the three is given.

    Attributes:
        label: a partition's GPT name, compared exactly.
        partuuid: a partition's GPT GUID.
        file: an absolute path, of a file that this part alone is.
    """

    label: str | None = None
    partuuid: uuid.UUID | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse none or several."""
        if sum(name is not None for name in (self.label, self.partuuid, self.file)) != 1:
            raise ValueError("a part is named by one of label, PARTUUID and file")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "PARTUUID=…", "PARTLABEL=…", "FILE=/…" or a bare label.

        Raises:
            ValueError: the GUID has no such form, the label is empty, or the path is not absolute
                and plain.
        """
        kind, equals, value = text.partition("=")
        if equals and kind == "PARTUUID":
            return cls(partuuid=uuid.UUID(value))
        if equals and kind == "FILE":
            if not _FILE.fullmatch(value) or len(value) > FILE_MAX_CHARS:
                raise ValueError(
                    f"{value[:FILE_MAX_CHARS]!r} is no absolute path of letters, digits and "
                    f"._+@=- with at most {FILE_MAX_CHARS} characters, without names that begin "
                    "or end with a dot"
                )
            return cls(file=Path(value))
        label = value if equals and kind == "PARTLABEL" else text
        if not label:
            raise ValueError("a partition label is empty")
        return cls(label=label)

    def matches(self, entry: Entry) -> bool:
        """Tell whether it names this partition."""
        if self.label is not None:
            return entry.name == self.label
        return self.partuuid is not None and entry.part_guid == self.partuuid

    @property
    def words(self) -> str:
        """How it is written in settings and messages."""
        if self.label is not None:
            return f"PARTLABEL={self.label}"
        return f"FILE={self.file}" if self.file is not None else f"PARTUUID={self.partuuid}"


SlotLayout: TypeAlias = Mapping[Slot, Mapping[str, PartRef]]
"""For both slots: the parts by name, and the partition or file of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a part that is a file finds on its file system. Files of a slot may share it.

    Attributes:
        file_system: tells file systems apart (st_dev).
        free: bytes that nobody holds.
        block: bytes of a block, on FAT a cluster: a file takes whole ones.
        held: bytes that the file takes as it is.
        length: bytes that it has; None when there is no such file.
    """

    file_system: int
    free: int
    block: int
    held: int
    length: int | None

    def taken_by(self, size: int) -> int:
        """Return what a file of `size` bytes takes."""
        return size + -size % self.block


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The bytes of one part of a slot.

    Attributes:
        path: what to open: a partition's node, a whole disk, a disk file, or the part's own file.
        offset: where the part begins in it, in bytes.
        size: how many bytes it has; of a file: how many it may have at most.
        partuuid: its GPT GUID, lower case; empty for a file.
        label: its GPT name; of a file its path.
        number: its number in the table, from 1; 0 for a file.
        room: of a part that is a file of its own; None for a run of bytes of a disk.
    """

    path: Path
    offset: int
    size: int
    partuuid: str
    label: str
    number: int = 0
    room: Room | None = None

    @property
    def readable_bytes(self) -> int:
        """How many bytes there are to read: the whole partition, or the file as it was found."""
        return self.size if self.room is None else self.room.length or 0

    @property
    def words(self) -> str:
        """What it is called in messages."""
        return f"partition {self.label}" if self.room is None else f"file {self.label}"

    def sized(self, size: int) -> Region:
        """Return the region that an image of `size` bytes is written to.

        A file is exactly as large as its image; a partition stays as it is.
        """
        return self if self.room is None else replace(self, size=size)


def resolve(disk: Path, layout: SlotLayout) -> dict[Slot, dict[str, Region]]:
    """Find every part of both slots.

    A file need not be there, nor its folder: that is seen when it is written, so that a system
    whose boot partition is not mounted still knows its slots.

    Args:
        disk: a disk file, a whole-disk device, or any partition of the disk.
        layout: the names of partitions and files.

    Raises:
        PartitionUnknownError: a name leads nowhere.
        PartitionAmbiguousError: a name leads to two partitions, or two names to one.
        BootFileSharedError: two names lead to one file.
        PartitionStaleError: the kernel's partitions are not those of the table.
        TableError, DeviceError: the disk's table cannot be read.
    """
    disk = whole_disk(disk).resolve()
    table = read_table(disk)
    places = entries_of(table, layout, disk=disk)
    files = files_of(layout)
    regions = {
        slot: {part: _region(disk, table, entry) for part, entry in parts.items()}
        | _file_regions(files[slot])
        for slot, parts in places.items()
    }
    return {slot: {part: regions[slot][part] for part in layout[slot]} for slot in layout}


def files_of(layout: SlotLayout) -> dict[Slot, dict[str, Path]]:
    """Return the parts of both slots that are files; no two share one, on FAT neither.

    Raises:
        BootFileSharedError: two names lead to one file.
    """
    owners: dict[str, str] = {}
    found: dict[Slot, dict[str, Path]] = {slot: {} for slot in layout}
    for slot, parts in layout.items():
        for part, ref in parts.items():
            if ref.file is None:
                continue
            owner = f"part {part} of slot {slot.value}"
            first = owners.setdefault(str(ref.file).lower(), owner)
            if first != owner:
                raise BootFileSharedError(f"{ref.file} is named as {first} and as {owner}")
            found[slot][part] = ref.file
    return found


def entries_of(table: Table, layout: SlotLayout, *, disk: Path) -> dict[Slot, dict[str, Entry]]:
    """Find the table's entry for every part of both slots that is a partition; none share one.

    Raises:
        PartitionUnknownError: a name leads nowhere.
        PartitionAmbiguousError: a name leads to two partitions, or two names to one.
    """
    owners: dict[int, str] = {}
    found: dict[Slot, dict[str, Entry]] = {slot: {} for slot in layout}
    for slot, parts in layout.items():
        for part, ref in parts.items():
            if ref.file is not None:
                continue
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


def _file_regions(files: Mapping[str, Path]) -> dict[str, Region]:
    """Return the regions of one slot's files: each may have what all of them hold, and the rest."""
    alone = {part: region_of_file(path) for part, path in files.items()}
    rooms = [region.room for region in alone.values() if region.room is not None]
    return {
        part: region.sized(_shared_by(region.room.file_system, rooms)) if region.room else region
        for part, region in alone.items()
    }


def region_of_file(path: Path) -> Region:
    """Return the region of a boot file for which nothing else makes room."""
    room = room_of(path)
    size = room.free + room.held
    return Region(path=path, offset=0, size=size, partuuid="", label=str(path), room=room)


def _shared_by(file_system: int, rooms: Iterable[Room]) -> int:
    together = [room for room in rooms if room.file_system == file_system]
    return min(room.free for room in together) + sum(room.held for room in together)


def room_of(path: Path) -> Room:
    """Look at a boot file and at the file system where it is, or would be.

    What cannot be looked at has no room; why is told when it is to be written.
    """
    try:
        status = path.stat()
    except OSError:
        status = None
    try:
        folder = nearest_folder(path)
        system, number = os.statvfs(folder), folder.stat().st_dev
    except OSError:
        return Room(file_system=0, free=0, block=1, held=0, length=None)
    return Room(
        file_system=number,
        free=system.f_bavail * system.f_frsize,
        block=system.f_frsize,
        held=status.st_blocks * _STAT_BLOCK if status else 0,
        length=status.st_size if status else None,
    )


def nearest_folder(path: Path) -> Path:
    """Return the innermost folder above `path` that is there.

    Raises:
        OSError: one may not be looked at.
    """
    return next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)


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
