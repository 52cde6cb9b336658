"""Where the partitions of a layout lie: from a `DiskLayout` to a table, by arithmetic alone.

Partitions follow one another at multiples of the alignment, behind the primary table; the disk ends
with the backup table. GUIDs that the layout does not give follow from its seed, or are random.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final

from partitions import gpt
from partitions.attributes import BootBits
from partitions.errors import GptEntryError, LayoutInvalidError
from partitions.firmware import USR_TYPE
from partitions.layout import DiskLayout, Partition, Role

_ARRAY_BYTES: Final = gpt.ENTRY_COUNT * gpt.ENTRY_BYTES
ESP_TYPE: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT_TYPE: Final = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
LINUX_TYPE: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_TYPES: Final = {Role.ESP: ESP_TYPE, Role.BIOS_BOOT: BIOS_BOOT_TYPE}
LEGACY_BOOTABLE: Final = 1 << 2  # attribute bit 2: where BIOS-like loaders look for a script

_MINE: Final = uuid.UUID("6d7f2b0c-5f0e-5d0a-9d5b-3f6d7f0b1a52")  # name space of seeded GUIDs


def plan(
    layout: DiskLayout,
    *,
    confirmed_a: bool,
    new_guid: Callable[[str], uuid.UUID],
    boot_bits: bool = True,
    bootable_esp: bool = False,
) -> gpt.Table:
    """Give each partition its place.

    Args:
        layout: what shall be.
        confirmed_a: whether slot A holds a system: then its bits are (1, 0, 1), else (0, 0, 0).
        new_guid: makes the GUID of a thing that has none, by its name.
        boot_bits: whether the loader keeps its memory in the table; if not, no partition of the
            slots gets bits, nor by default the type that such a loader looks for.
        bootable_esp: whether the ESP is marked legacy BIOS bootable.

    Raises:
        LayoutInvalidError: the partitions do not fit the disk.
    """
    table = gpt.new_table(
        sector_size=layout.sector_size,
        disk_sectors=_disk_bytes(layout) // layout.sector_size,
        disk_guid=layout.guid or new_guid("disk"),
    )
    entries = []
    for number, (one, place) in enumerate(zip(layout.partitions, _places(layout), strict=True), 1):
        entry = gpt.new_entry(
            number,
            type_guid=one.type_guid or _type_of(one, boot_bits=boot_bits),
            part_guid=one.partuuid or new_guid(f"partition/{one.label}"),
            first_lba=place.start // layout.sector_size,
            last_lba=place.stop // layout.sector_size - 1,
            name=one.label,
        )
        if bootable_esp and one.role is Role.ESP:
            entry = entry.with_attributes(LEGACY_BOOTABLE)
        if boot_bits and confirmed_a and one.carrier and one.role is Role.SLOT_A:
            proven = BootBits(priority=1, successful=True)
            entry = entry.with_attributes(proven.within(0))
        entries.append(entry)
    table = table.with_entries(entries)
    try:
        gpt.check_entries(table)
    except GptEntryError as error:
        raise LayoutInvalidError(
            f"the partitions do not fit a disk of {_disk_bytes(layout)} bytes: {error}"
        ) from error
    return table


def _type_of(one: Partition, *, boot_bits: bool) -> uuid.UUID:
    # One partition of a slot carries its boot bits; loaders look for it by this type.
    return USR_TYPE if boot_bits and one.carrier else _TYPES.get(one.role, LINUX_TYPE)


def _places(layout: DiskLayout) -> list[range]:
    """Return the bytes of each partition; one that takes the rest ends at an aligned byte."""
    at = _aligned(gpt.ENTRIES_LBA * layout.sector_size + _ARRAY_BYTES, layout)
    places = []
    for one in layout.partitions:
        rest = (layout.size_bytes - _backup_bytes(layout)) // layout.alignment_bytes
        end = at + one.size_bytes if one.size_bytes else rest * layout.alignment_bytes
        places.append(range(at, end))
        at = _aligned(end, layout)
    return places


def _backup_bytes(layout: DiskLayout) -> int:
    return _ARRAY_BYTES + layout.sector_size


def _aligned(byte: int, layout: DiskLayout) -> int:
    return byte + -byte % layout.alignment_bytes


def _disk_bytes(layout: DiskLayout) -> int:
    if layout.size_bytes:
        return layout.size_bytes
    return _aligned(_places(layout)[-1].stop + _backup_bytes(layout), layout)


def guids_of(layout: DiskLayout) -> Callable[[str], uuid.UUID]:
    """Return what makes GUIDs for a layout: from its seed, or at random."""
    if not layout.seed:
        return lambda _: uuid.uuid4()
    return lambda name: uuid.uuid5(_MINE, f"{layout.seed}/{name}")
