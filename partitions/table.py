"""Reading a partition table off a disk and writing it back, so that power may fail at any time.

The rule behind the order of writes: **while one copy is being written, the other one is whole.**

1. Both copies are read. A copy is *whole* when its header and its entries are valid together.
2. If the primary is not whole, it is first restored from what was read, with nothing changed, and
   flushed. The backup, perhaps the only whole copy, is not touched before.
3. Backup entries, backup header, flush; primary entries, primary header, flush.

Within one flush the hardware may reorder and tear at sector borders; one sector lands whole or not
at all. A disk that grew has its backup moved to the new end in step 3, under the protection of the
whole primary, and its last usable sector raised.

LBA 0 is never written here (hybrid MBRs), except by `initialise`, which makes a fresh disk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from partitions import gpt
from partitions.copies import Belief, Disk, Found, load_copies
from partitions.devices import whole_disk
from partitions.disk import Access, open_disk
from partitions.errors import DeviceReadError, GptChangedError, GptDamagedError, TableError
from partitions.gpt import Header, Table

log = logging.getLogger(__name__)


def read_table(path: Path) -> Table:
    """Read the partition table of a disk file, a disk device or a partition's disk.

    Raises:
        TableError: there is none, or none that can be relied on.
        DeviceError: the disk cannot be opened or read.
    """
    return _read(path, Access.READ)


def read_table_past_cache(path: Path) -> Table:
    """Read the table as the medium holds it, not as the page cache remembers it.

    Raises:
        TableError: there is none, or none that can be relied on.
        DeviceError: the disk cannot be opened or read.
    """
    return _read(path, Access.READ_PAST_CACHE)


def read_table_as_firmware(path: Path) -> Table:
    """Read the table as a boot loader does: it believes the primary without comparing the backup.

    Raises:
        TableError: there is none, or none that can be relied on.
        DeviceError: the disk cannot be opened or read.
    """
    return _read(path, Access.READ, belief=Belief.PRIMARY)


def _read(path: Path, access: Access, *, belief: Belief = Belief.STRICT) -> Table:
    with open_disk(whole_disk(path), access) as disk, _naming(path):
        return load(disk, belief=belief)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the disk's path in front of what is said about its table."""
    try:
        yield
    except TableError as error:
        raise type(error)(f"{path}: {error}") from error


def write_table(path: Path, old: Table, new: Table, *, belief: Belief = Belief.STRICT) -> None:
    """Replace table `old` of a disk by its edit `new`; durable on return.

    The disk is locked while this runs (flock on the whole disk, the convention udev keeps too), and
    `old` is compared with what it holds, so that two editors do not undo each other's work.

    Raises:
        GptChangedError: the disk does not hold `old` any more; nothing was written.
        DeviceBusyError: another program keeps the disk locked.
        TableError, DeviceError: as for `read_table`, or writing failed.
    """
    with open_disk(whole_disk(path), Access.WRITE) as disk, _naming(path):
        disk.lock()
        store(disk, old=old, new=new, belief=belief)
    log.info("partition table written disk=%s", path)


def load(disk: Disk, *, belief: Belief = Belief.STRICT) -> Table:
    """Read the table of an open disk.

    Raises:
        TableError: there is none, or none that can be relied on.
        DeviceError: the disk cannot be read.
    """
    return load_copies(disk, belief)[1]


def store(disk: Disk, *, old: Table, new: Table, belief: Belief = Belief.STRICT) -> None:
    """Write `new` over `old` on an open disk, in the order that the module's text gives.

    Nothing is written when the disk holds `new` already and both copies are healthy.

    Raises:
        GptChangedError: the disk does not hold `old`; nothing was written.
        TableError, DeviceError: the disk's table is refused, or the disk fails.
    """
    found, now = load_copies(disk, belief)
    if (now.header.shared, now.array) != (old.header.shared, old.array):
        raise GptChangedError("the partition table on the disk is not the one that was read")
    if now.healthy and new.array == now.array:
        return
    for fault in now.faults:
        log.warning("partition table is mended: %s", fault)
    target = _at_the_end(now, new.array)
    backup = _backup_of(target, found)
    if found.primary.fault:
        _write_copy(disk, now.header, now.array, sector_size=now.sector_size)
    _write_copy(disk, backup, target.array, sector_size=now.sector_size)
    _write_copy(disk, target.header, target.array, sector_size=now.sector_size)


def _at_the_end(now: Table, array: bytes) -> Table:
    """Return the table to write: with these entries, and its backup at the disk's last sector."""
    last = now.disk_sectors - 1
    header = replace(now.header, other_lba=last, entries_crc=gpt.array_crc(array))
    if now.header.other_lba != last:  # the disk grew: what the backup leaves is usable
        usable = last - header.array_sectors(now.sector_size) - 1
        header = replace(header, last_usable_lba=usable)
    table = replace(now, header=header, array=array, faults=())
    gpt.check_entries(table)
    return table


def _backup_of(table: Table, found: Found) -> Header:
    last = table.disk_sectors - 1
    entries_lba = last - table.header.array_sectors(table.sector_size)
    there = found.backup.header
    if there and there.own_lba == last and there.shared == table.header.shared:
        entries_lba = there.entries_lba  # some keep it elsewhere than right before the header
    _make_sure_of_room(table, entries_lba)
    return replace(table.header, own_lba=last, other_lba=gpt.PRIMARY_LBA, entries_lba=entries_lba)


def _make_sure_of_room(table: Table, backup_entries_lba: int) -> None:
    """Refuse to put a restored copy where partitions may lie."""
    header = table.header
    end = header.entries_lba + header.array_sectors(table.sector_size)
    if end > header.first_usable_lba or backup_entries_lba <= header.last_usable_lba:
        raise GptDamagedError(
            f"a table does not fit beside sectors {header.first_usable_lba} "
            f"to {header.last_usable_lba}, which are for partitions"
        )


def _write_copy(disk: Disk, header: Header, array: bytes, *, sector_size: int) -> None:
    """Write one copy's entries and header in whole sectors, and flush."""
    at = header.entries_lba * sector_size
    whole = header.array_sectors(sector_size) * sector_size
    behind = _what_is_there(disk, at, whole)[len(array) :] if whole > len(array) else b""
    disk.pwrite(at, array + behind)
    at = header.own_lba * sector_size
    there = _what_is_there(disk, at, sector_size)
    size = gpt.HEADER_BYTES + len(header.tail)
    # What follows a header is kept; in a damaged sector there is nothing to keep.
    rest = there[size:] if there.startswith(gpt.SIGNATURE) else bytes(sector_size - size)
    disk.pwrite(at, gpt.encode_header(header, rest=rest))
    disk.sync()


def _what_is_there(disk: Disk, offset: int, size: int) -> bytes:
    try:
        return disk.pread(offset, size)
    except DeviceReadError:  # a bad sector has nothing to keep; writing it may mend it
        return bytes(size)


def initialise(disk: Disk, table: Table) -> None:
    """Write a fresh table and its protective MBR on a disk that holds nothing of value.

    Raises:
        TableError: the table's entries are not consistent.
        DeviceError: the disk fails.
    """
    gpt.check_entries(table)
    target = _at_the_end(table, table.array)
    size = table.sector_size
    last = table.disk_sectors - 1
    entries_lba = last - target.header.array_sectors(size)
    backup = replace(
        target.header, own_lba=last, other_lba=gpt.PRIMARY_LBA, entries_lba=entries_lba
    )
    disk.pwrite(0, gpt.protective_mbr(disk_sectors=table.disk_sectors))
    _write_copy(disk, backup, target.array, sector_size=size)
    _write_copy(disk, target.header, target.array, sector_size=size)
