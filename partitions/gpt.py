"""The GUID partition table as a value. Bytes in, values out: no file is opened in this room.

Read once, edit a value, write once: editors return a new `Table` and touch no disk; `table.py`
moves the bytes. What is not understood is kept: the bytes of an entry behind its known fields and
behind the end of its name, unused entries, the header's tail. Layout and validity rules follow
the UEFI specification 2.10 chapter 5 and what cgpt and GRUB accept.

Not here: what the boot bits mean (`attributes.py`), the order of writes (`table.py`).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from partitions.attributes import BOOT_BITS
from partitions.errors import GptEntryError

SIGNATURE: Final = b"EFI PART"
REVISION: Final = 0x0001_0000
HEADER_BYTES: Final = 92  # the fields that the specification knows
ENTRY_BYTES: Final = 128  # the least; larger ones are a power of two times it
PRIMARY_LBA: Final = 1
ENTRIES_LBA: Final = 2  # where the primary's entries lie unless a header says otherwise
ENTRY_COUNT: Final = 128  # what everybody makes; readers accept others
SECTOR_SIZES: Final = (512, 4096)
ARRAY_MAX_BYTES: Final = 512 * 1024  # 32 times the usual table; bounds what a header may claim
NAME_UNITS: Final = 36  # UTF-16 code units

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_CRC_OFFSET = 16
_ATTRIBUTES_OFFSET = 48
_UNUSED = bytes(16)  # the type GUID of an entry that names no partition


class CopyFaultError(Exception):
    """One copy of the table cannot be relied on; the text says why. Never leaves this room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One partition, as the table names it.

    Attributes:
        number: its place in the table, from 1, as in /dev/sda3.
        raw: all its bytes; the fields below are read from them.
    """

    number: int
    raw: bytes

    @property
    def type_guid(self) -> uuid.UUID:
        """What kind of partition it is."""
        return uuid.UUID(bytes_le=self.raw[0:16])

    @property
    def part_guid(self) -> uuid.UUID:
        """Its own GUID: the PARTUUID."""
        return uuid.UUID(bytes_le=self.raw[16:32])

    @property
    def first_lba(self) -> int:
        """Its first sector."""
        return int.from_bytes(self.raw[32:40], "little")

    @property
    def last_lba(self) -> int:
        """Its last sector; it still belongs to the partition."""
        return int.from_bytes(self.raw[40:48], "little")

    @property
    def sectors(self) -> int:
        """How many sectors it has."""
        return self.last_lba - self.first_lba + 1

    @property
    def attributes(self) -> int:
        """All 64 attribute bits."""
        return int.from_bytes(self.raw[48:56], "little")

    @property
    def name(self) -> str:
        """Its label: up to the first zero unit, since some writers leave rubbish behind it."""
        units = self.raw[56 : 56 + 2 * NAME_UNITS]
        ends = (at for at in range(0, len(units), 2) if units[at : at + 2] == b"\0\0")
        return units[: next(ends, len(units))].decode("utf-16-le", errors="replace")

    def with_attributes(self, attributes: int) -> Entry:
        """Return the entry with other attribute bits and every other byte as it is."""
        changed = attributes.to_bytes(8, "little")
        at = _ATTRIBUTES_OFFSET
        return replace(self, raw=self.raw[:at] + changed + self.raw[at + 8 :])


def new_entry(
    number: int,
    *,
    type_guid: uuid.UUID,
    part_guid: uuid.UUID,
    first_lba: int,
    last_lba: int,
    name: str,
) -> Entry:
    """Make a fresh entry without attributes.

    Raises:
        GptEntryError: the name has more than 36 UTF-16 units or holds a zero.
    """
    units = name.encode("utf-16-le")
    if len(units) > 2 * NAME_UNITS or "\0" in name:
        raise GptEntryError(f"partition name {name!r} has more than {NAME_UNITS} units or a zero")
    guids = type_guid.bytes_le, part_guid.bytes_le
    return Entry(number=number, raw=_ENTRY.pack(*guids, first_lba, last_lba, 0, units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One header; LBAs count sectors of the disk's own size.

    Attributes:
        own_lba: where this header lies.
        other_lba: where it says the other copy's header lies.
        first_usable_lba: the first sector that a partition may have.
        last_usable_lba: the last sector that a partition may have, inclusive.
        disk_guid: the disk's own GUID.
        entries_lba: where this copy's entries begin.
        entry_count: how many entries the table has, used or not.
        entry_size: bytes of an entry.
        entries_crc: CRC-32 of all entries.
        tail: header bytes after the known 92 that its size field counts; kept as found.
    """

    own_lba: int
    other_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: uuid.UUID
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int
    tail: bytes = b""

    @property
    def array_bytes(self) -> int:
        """Bytes of all entries together."""
        return self.entry_count * self.entry_size

    def array_sectors(self, sector_size: int) -> int:
        """Sectors that the entries take, the last one perhaps in part."""
        return -(-self.array_bytes // sector_size)

    @property
    def shared(self) -> tuple[object, ...]:
        """The fields in which both copies of a table must agree."""
        return (
            self.first_usable_lba,
            self.last_usable_lba,
            self.disk_guid,
            self.entry_count,
            self.entry_size,
            self.tail,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A partition table that was read and found valid, or an edit of one.

    Attributes:
        sector_size: bytes of a sector, 512 or 4096.
        disk_sectors: how many the disk has now.
        header: the header of the copy that was believed.
        array: all entries, used or not.
        faults: what is wrong with the copies on disk, a sentence each; the next write mends it.
    """

    sector_size: int
    disk_sectors: int
    header: Header
    array: bytes
    faults: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether both copies on disk are valid, in their places and alike."""
        return not self.faults

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The used entries in table order."""
        size = self.header.entry_size
        return tuple(
            Entry(number=at // size + 1, raw=self.array[at : at + size])
            for at in range(0, len(self.array), size)
            if self.array[at : at + 16] != _UNUSED
        )

    def with_entries(self, entries: Iterable[Entry]) -> Table:
        """Return a table in which these entries took their numbers' places.

        Raises:
            GptEntryError: the table has no such number.
        """
        array = bytearray(self.array)
        size = self.header.entry_size
        for entry in entries:
            if not 1 <= entry.number <= self.header.entry_count:
                raise GptEntryError(
                    f"partition number {entry.number} is not in 1 to {self.header.entry_count}"
                )
            at = (entry.number - 1) * size
            array[at : at + len(entry.raw)] = entry.raw
        return replace(self, array=bytes(array))

    def with_attributes(self, attributes: Mapping[int, int]) -> Table:
        """Return a table in which the entries of these numbers have these attribute bits."""
        return self.with_entries(
            entry.with_attributes(attributes[entry.number])
            for entry in self.entries
            if entry.number in attributes
        )


def parse_header(sector: bytes, *, lba: int, disk_sectors: int) -> Header:
    """Read one header sector that was found at `lba`.

    Raises:
        CopyFaultError: it is no header, its CRC is wrong or its fields contradict the disk.
    """
    fields = _HEADER.unpack_from(sector)
    signature, revision, size, crc, reserved, *_ = fields
    if signature != SIGNATURE:
        raise CopyFaultError("has no GPT signature")
    if revision != REVISION or not HEADER_BYTES <= size <= len(sector) or reserved:
        raise CopyFaultError(f"has revision {revision:#x}, size {size}, reserved {reserved}")
    actual = _header_crc(sector[:size])
    if actual != crc:
        raise CopyFaultError(f"has header CRC {crc:08x}, its bytes give {actual:08x}")
    header = Header(
        own_lba=fields[5],
        other_lba=fields[6],
        first_usable_lba=fields[7],
        last_usable_lba=fields[8],
        disk_guid=uuid.UUID(bytes_le=fields[9]),
        entries_lba=fields[10],
        entry_count=fields[11],
        entry_size=fields[12],
        entries_crc=fields[13],
        tail=sector[HEADER_BYTES:size],
    )
    _check_header(header, lba=lba, sector_size=len(sector), disk_sectors=disk_sectors)
    return header


def _check_header(header: Header, *, lba: int, sector_size: int, disk_sectors: int) -> None:
    if header.own_lba != lba:
        raise CopyFaultError(f"says it lies at sector {header.own_lba}, it lies at {lba}")
    times, odd = divmod(header.entry_size, ENTRY_BYTES)
    if odd or times.bit_count() != 1 or not header.entry_count:
        raise CopyFaultError(f"has {header.entry_count} entries of {header.entry_size} bytes")
    if header.array_bytes > ARRAY_MAX_BYTES:
        raise CopyFaultError(f"has {header.array_bytes} bytes of entries, over {ARRAY_MAX_BYTES}")
    if not header.first_usable_lba <= header.last_usable_lba < disk_sectors:
        raise CopyFaultError(
            f"uses sectors {header.first_usable_lba} to {header.last_usable_lba} "
            f"of a disk of {disk_sectors}"
        )
    first, last = header.entries_lba, header.entries_lba + header.array_sectors(sector_size) - 1
    before = first >= ENTRIES_LBA and last < header.first_usable_lba
    behind = header.last_usable_lba < first and last < lba
    if not (before if lba == PRIMARY_LBA else behind):
        raise CopyFaultError(f"keeps its entries in sectors {first} to {last}, which are not free")


def encode_header(header: Header, *, rest: bytes) -> bytes:
    """Return the header's sector; `rest` is what follows it there and is kept."""
    size = HEADER_BYTES + len(header.tail)
    body = bytearray(
        _HEADER.pack(
            SIGNATURE,
            REVISION,
            size,
            0,
            0,
            header.own_lba,
            header.other_lba,
            header.first_usable_lba,
            header.last_usable_lba,
            header.disk_guid.bytes_le,
            header.entries_lba,
            header.entry_count,
            header.entry_size,
            header.entries_crc,
        )
        + header.tail
    )
    struct.pack_into("<I", body, _CRC_OFFSET, _header_crc(body))
    return bytes(body) + rest


def _header_crc(body: bytes | bytearray) -> int:
    return zlib.crc32(body[_CRC_OFFSET + 4 :], zlib.crc32(b"\0\0\0\0", zlib.crc32(body[:16])))


def array_crc(array: bytes) -> int:
    """Return the CRC-32 that a header keeps of its entries."""
    return zlib.crc32(array)


def check_entries(table: Table) -> None:
    """Make sure that each partition has its own place inside the usable sectors.

    Raises:
        GptEntryError: one lies outside, two overlap, or two have the same GUID.
    """
    header = table.header
    last, last_number = header.first_usable_lba - 1, 0
    guids: dict[bytes, int] = {}
    for entry in sorted(table.entries, key=lambda entry: entry.first_lba):
        if entry.first_lba <= last and last_number:
            raise GptEntryError(f"partitions {last_number} and {entry.number} overlap")
        if not last < entry.first_lba <= entry.last_lba <= header.last_usable_lba:
            raise GptEntryError(
                f"partition {entry.number} has sectors {entry.first_lba} to {entry.last_lba}, "
                f"usable are {header.first_usable_lba} to {header.last_usable_lba}"
            )
        twin = guids.setdefault(entry.raw[16:32], entry.number)
        if twin != entry.number:
            raise GptEntryError(
                f"partitions {twin} and {entry.number} have the same GUID {entry.part_guid}"
            )
        last, last_number = entry.last_lba, entry.number


def same_but_for_boot_bits(one: bytes, other: bytes, *, entry_size: int) -> bool:
    """Tell whether two arrays of entries differ in nothing but the bits a boot loader counts in."""
    return _without_boot_bits(one, entry_size) == _without_boot_bits(other, entry_size)


def _without_boot_bits(array: bytes, entry_size: int) -> bytes:
    plain = bytearray(array)
    for at in range(_ATTRIBUTES_OFFSET, len(plain), entry_size):
        attributes = int.from_bytes(plain[at : at + 8], "little")
        plain[at : at + 8] = (attributes & ~BOOT_BITS).to_bytes(8, "little")
    return bytes(plain)


def new_table(*, sector_size: int, disk_sectors: int, disk_guid: uuid.UUID) -> Table:
    """Make an empty table for a whole disk, with places as sgdisk chooses them.

    Raises:
        GptEntryError: the disk is too small for two tables and one sector between.
    """
    array = bytes(ENTRY_COUNT * ENTRY_BYTES)
    array_sectors = len(array) // sector_size
    first, last = ENTRIES_LBA + array_sectors, disk_sectors - array_sectors - 2
    if last < first:
        raise GptEntryError(f"a disk of {disk_sectors} sectors has no room for two GPTs")
    header = Header(
        own_lba=PRIMARY_LBA,
        other_lba=disk_sectors - 1,
        first_usable_lba=first,
        last_usable_lba=last,
        disk_guid=disk_guid,
        entries_lba=ENTRIES_LBA,
        entry_count=ENTRY_COUNT,
        entry_size=ENTRY_BYTES,
        entries_crc=array_crc(array),
    )
    return Table(sector_size=sector_size, disk_sectors=disk_sectors, header=header, array=array)


def protective_mbr(*, disk_sectors: int) -> bytes:
    """Return the first 512 bytes of a fresh disk: one MBR partition that covers all of it."""
    record = bytes.fromhex("00000200eeffffff") + struct.pack(
        "<II", PRIMARY_LBA, min(disk_sectors - 1, 0xFFFF_FFFF)
    )
    return bytes(446) + record + bytes(3 * 16) + b"\x55\xaa"
