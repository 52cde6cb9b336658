"""The two copies of a partition table on a disk: finding them, and what to believe of them.

Headers and entries are judged separately, as cgpt does: a copy is *whole* when its header and its
entries are valid together. The primary is believed first, then the backup, then a valid header with
the other copy's entries. Two whole copies that tell different stories are refused, unless they
differ in boot bits alone, which is what a power cut between the two writes leaves.

Nothing is written here; the order of writes is in `table.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol

from partitions import gpt
from partitions.errors import (
    DeviceReadError,
    GptAmbiguousError,
    GptDamagedError,
    GptMissingError,
    PartitionsError,
)
from partitions.gpt import CopyFaultError, Header, Table


class Disk(Protocol):
    """A row of bytes that can be flushed; a real disk, a disk file or a simulated one.

    `sync` returns when all earlier writes are durable. All raise `PartitionsError` when the device
    fails; reading less than asked for is a failure.
    """

    @property
    def size_bytes(self) -> int:
        """How large it is."""

    @property
    def sector_sizes(self) -> tuple[int, ...]:
        """The sector sizes it may have, in bytes; a device knows the one, a file does not."""

    def pread(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of `data`; not durable yet."""

    def sync(self) -> None:
        """Make all earlier writes durable."""


class Belief(enum.Enum):
    """What to make of two whole copies that tell different stories."""

    STRICT = "strict"  # believe neither: ours to edit only if they differ in boot bits alone
    PRIMARY = "primary"  # believe the primary without a look at the other, as loaders do


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What lies where one copy of the table should be; whole when `fault` is empty."""

    lba: int
    header: Header | None
    array: bytes
    fault: str
    unreadable: DeviceReadError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Both copies of one disk, read with one sector size."""

    sector_size: int
    disk_sectors: int
    primary: Copy
    backup: Copy


def load_copies(disk: Disk, belief: Belief) -> tuple[Found, Table]:
    """Read both copies and make one table of them; a file's sector size is found on the way.

    Raises:
        TableError: there is none, or none that can be relied on.
        DeviceError: the disk cannot be read.
    """
    tables: list[tuple[Found, Table]] = []
    faults: list[PartitionsError] = []
    for sector_size in disk.sector_sizes:
        found = _examine(disk, sector_size)
        try:
            tables.append((found, _judge(disk, found, belief)))
        except (GptMissingError, GptDamagedError) as error:
            faults.append(error)
    if len(tables) > 1:
        raise GptAmbiguousError("the disk holds a valid GPT for 512 and one for 4096-byte sectors")
    if tables:
        return tables[0]
    raise next((error for error in faults if isinstance(error, GptDamagedError)), faults[0])


def _examine(disk: Disk, sector_size: int) -> Found:
    disk_sectors = disk.size_bytes // sector_size
    last = disk_sectors - 1
    primary = _read_copy(disk, gpt.PRIMARY_LBA, sector_size)
    places = [last]
    if primary.header:  # a whole primary alone says where its twin is: the disk may have grown
        told = primary.header.other_lba
        places = [told] if not primary.fault or told == last else [told, last]
    backups = [_read_copy(disk, lba, sector_size) for lba in places]
    backup = next((copy for copy in backups if not copy.fault), backups[-1])
    return Found(sector_size=sector_size, disk_sectors=disk_sectors, primary=primary, backup=backup)


def _read_copy(disk: Disk, lba: int, sector_size: int) -> Copy:
    disk_sectors = disk.size_bytes // sector_size
    header, array, fault, unreadable = None, b"", "", None
    try:
        if not gpt.PRIMARY_LBA <= lba < disk_sectors:
            raise CopyFaultError("would lie outside the disk")
        sector = disk.pread(lba * sector_size, sector_size)
        header = gpt.parse_header(sector, lba=lba, disk_sectors=disk_sectors)
        array = disk.pread(header.entries_lba * sector_size, header.array_bytes)
        if gpt.array_crc(array) != header.entries_crc:
            raise CopyFaultError(
                f"has entries with CRC {gpt.array_crc(array):08x}, "
                f"its header says {header.entries_crc:08x}"
            )
    except CopyFaultError as error:
        fault = str(error)
    except DeviceReadError as error:  # a bad sector in one copy: that is what the other is for
        fault, unreadable = f"cannot be read: {error}", error
    return Copy(lba=lba, header=header, array=array, fault=fault, unreadable=unreadable)


def _judge(disk: Disk, found: Found, belief: Belief) -> Table:
    """Make one table of two copies, or refuse."""
    primary, backup = found.primary, found.backup
    header, array = _believed(disk, found)
    faults = [
        f"the {name} table at sector {copy.lba} {copy.fault}"
        for name, copy in (("primary", primary), ("backup", backup))
        if copy.fault
    ]
    if backup.lba != found.disk_sectors - 1:
        faults.append(
            f"the backup is at sector {backup.lba} of {found.disk_sectors}: the disk grew"
        )
    if not primary.fault and not backup.fault:
        faults += _differences(primary, backup, belief)
    table = Table(
        sector_size=found.sector_size,
        disk_sectors=found.disk_sectors,
        header=_as_primary(header, found),
        array=array,
        faults=tuple(faults),
    )
    gpt.check_entries(table)
    return table


def _believed(disk: Disk, found: Found) -> tuple[Header, bytes]:
    """Return the header and entries to go by: of the primary, the backup, or one of each."""
    primary, backup = found.primary, found.backup
    for copy in (primary, backup):
        if copy.header and not copy.fault:
            return copy.header, copy.array
    # No copy is whole. A header may still vouch for the other copy's entries.
    for header, array_lba in (
        (primary.header, _backup_entries_lba(found, primary.header)),
        (backup.header, _primary_entries_lba(found)),
    ):
        begin = array_lba * found.sector_size
        if header and array_lba and begin + header.array_bytes <= disk.size_bytes:
            array = disk.pread(begin, header.array_bytes)
            if gpt.array_crc(array) == header.entries_crc:
                return header, array
    for copy in (primary, backup):
        if copy.unreadable:
            raise copy.unreadable
    sentence = f"the primary table {primary.fault}, the backup table {backup.fault}"
    no_trace = all(
        "no GPT signature" in copy.fault or "outside" in copy.fault for copy in (primary, backup)
    )
    raise GptMissingError(f"no GPT: {sentence}") if no_trace else GptDamagedError(sentence)


def _backup_entries_lba(found: Found, model: Header | None) -> int:
    if found.backup.header:
        return found.backup.header.entries_lba
    return max(0, found.backup.lba - model.array_sectors(found.sector_size)) if model else 0


def _primary_entries_lba(found: Found) -> int:
    return found.primary.header.entries_lba if found.primary.header else gpt.ENTRIES_LBA


def _differences(primary: Copy, backup: Copy, belief: Belief) -> list[str]:
    """Say how two whole copies differ; refuse to choose when it is more than boot bits."""
    if primary.header is None or backup.header is None:
        return []
    same_fields = primary.header.shared == backup.header.shared
    if same_fields and primary.array == backup.array:
        return []
    alike = same_fields and gpt.same_but_for_boot_bits(
        primary.array, backup.array, entry_size=primary.header.entry_size
    )
    if not alike and belief is Belief.STRICT:
        raise GptAmbiguousError("the primary and the backup table are both valid and differ")
    return ["the backup table differs from the primary"]


def _as_primary(header: Header, found: Found) -> Header:
    """Return the header as the primary has it, or will have when it is restored."""
    primary, backup = found.primary, found.backup
    told = primary.header.other_lba if primary.header and backup.fault else backup.lba
    return replace(
        header,
        own_lba=gpt.PRIMARY_LBA,
        other_lba=told,
        entries_lba=_primary_entries_lba(found),
    )
