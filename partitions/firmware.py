"""A model of the firmware that picks a slot: chooses, counts tries, writes, as the real ones do.

Tests and the demo boot with it. `choose` and `spend` are pure; `boot` does the one write. Rules are
data: GRUB's `gptprio.next` as Flatcar boots, and ChromeOS firmware. Facts: the table of choices in
`tests/unit/partitions/test_firmware.py` is GRUB's, row by row.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from partitions.attributes import BootBits
from partitions.copies import Belief
from partitions.errors import NothingBootableError
from partitions.gpt import Entry, Table
from partitions.slots import Slot, SlotLayout, entries_of
from partitions.table import read_table_as_firmware, write_table

log = logging.getLogger(__name__)

USR_TYPE: Final = uuid.UUID("5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6")  # CoreOS and Flatcar: USR
CHROMEOS_KERNEL_TYPE: Final = uuid.UUID("fe3a2a5d-4f32-41a7-b725-accc3285a309")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareRules:
    """In what one loader differs from another.

    Attributes:
        name: for messages.
        boot_type: the partition type that it looks for.
        counts_confirmed: whether a boot of a confirmed slot with tries left lowers them, too.
        last_try_clears_priority: whether the last try of an unconfirmed slot clears its priority.
    """

    name: str
    boot_type: uuid.UUID
    counts_confirmed: bool
    last_try_clears_priority: bool


GRUB: Final = FirmwareRules(
    name="grub", boot_type=USR_TYPE, counts_confirmed=True, last_try_clears_priority=False
)
CHROMEOS: Final = FirmwareRules(
    name="chromeos",
    boot_type=CHROMEOS_KERNEL_TYPE,
    counts_confirmed=False,
    last_try_clears_priority=True,
)


def candidates(table: Table, rules: FirmwareRules) -> tuple[Entry, ...]:
    """Return the partitions that the loader looks at, in table order."""
    return tuple(entry for entry in table.entries if entry.type_guid == rules.boot_type)


def choose(entries: Iterable[Entry]) -> Entry | None:
    """Return the bootable entry of highest priority, on a tie the one that comes first."""
    bootable = [entry for entry in entries if BootBits.of(entry.attributes).bootable]
    return max(bootable, key=lambda entry: BootBits.of(entry.attributes).priority, default=None)


def spend(bits: BootBits, rules: FirmwareRules) -> BootBits:
    """Return the chosen slot's bits after this boot was counted."""
    if not bits.tries or (bits.successful and not rules.counts_confirmed):
        return bits
    left = replace(bits, tries=bits.tries - 1)
    if rules.last_try_clears_priority and not left.tries:
        left = replace(left, priority=0)
    return left


def boot(disk: Path, layout: SlotLayout, *, rules: FirmwareRules = GRUB) -> Slot:
    """Boot once: choose, count the try on the disk, and say which slot it is.

    Nothing is written when no try is counted; when one is, a damaged copy of the table is mended.

    Raises:
        NothingBootableError: the loader would stop, or starts a partition of no slot.
        PartitionUnknownError, PartitionAmbiguousError: the layout is not that of the disk.
        TableError, DeviceError: the disk's table cannot be used.
    """
    table, chosen = boot_partition(disk, rules=rules)
    for slot, parts in entries_of(table, layout, disk=disk).items():
        if chosen.number in {entry.number for entry in parts.values()}:
            return slot
    raise NothingBootableError(f"{disk}: the loader starts partition {chosen.number}, of no slot")


def boot_partition(disk: Path, *, rules: FirmwareRules = GRUB) -> tuple[Table, Entry]:
    """Boot once, knowing no slots: return the table as it was found and the chosen partition.

    Raises:
        NothingBootableError: the loader would stop at its prompt.
        TableError, DeviceError: the disk's table cannot be used.
    """
    table = read_table_as_firmware(disk)
    chosen = choose(candidates(table, rules))
    if chosen is None:
        raise NothingBootableError(f"{disk}: no partition of type {rules.boot_type} is bootable")
    before = BootBits.of(chosen.attributes)
    after = spend(before, rules)
    if after != before:
        new = table.with_attributes({chosen.number: after.within(chosen.attributes)})
        write_table(disk, table, new, belief=Belief.PRIMARY)
    log.info("firmware boots partition=%d label=%s %s", chosen.number, chosen.name, after.words)
    return table, chosen
