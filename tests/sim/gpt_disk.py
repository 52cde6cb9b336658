"""A disk in memory that records what is written, and every state a power cut can leave it in.

Between two flushes the hardware may write sectors in any order and lose any of them; a sector lands
whole or not at all. `crash_images` enumerates that. Beside it stands a reader of GPTs that shares
no code with the one under test: it reads as GRUB does.
"""

from __future__ import annotations

import itertools
import random
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from partitions import gpt
from partitions.attributes import BootBits
from partitions.firmware import USR_TYPE
from partitions.table import initialise

EXHAUSTIVE_SECTORS = 9  # up to so many changed sectors in one flush, every subset is examined
SAMPLED_SUBSETS = 64  # of larger ones, besides the regular ones


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    pass


class PowerCutError(BaseException):
    """The power went; a BaseException, so that no handler under test outlives it."""


@dataclass
class MemoryDisk:
    """Keeps `partitions.copies.Disk` in memory.

    Attributes:
        image: its bytes.
        sector_sizes: as a real disk tells them.
        log: what was written and flushed, in order.
        writes_left: after so many writes the power goes; None for never.
    """

    image: bytearray
    sector_sizes: tuple[int, ...] = gpt.SECTOR_SIZES
    log: list[Write | Flush] = field(default_factory=list)
    writes_left: int | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.image)

    def pread(self, offset: int, size: int) -> bytes:
        assert offset + size <= len(self.image), "reads past the end"
        return bytes(self.image[offset : offset + size])

    def pwrite(self, offset: int, data: bytes) -> None:
        if self.writes_left is not None:
            if not self.writes_left:
                raise PowerCutError
            self.writes_left -= 1
        assert offset + len(data) <= len(self.image), "writes past the end"
        self.image[offset : offset + len(data)] = data
        self.log.append(Write(offset, bytes(data)))

    def sync(self) -> None:
        self.log.append(Flush())


def crash_images(
    before: bytes, log: list[Write | Flush], *, sector_size: int, chance: random.Random
) -> Iterator[bytes]:
    """Yield every image (or a fair sample) that a power cut during `log` can leave."""
    durable = bytearray(before)
    pending: dict[int, bytes] = {}
    yield bytes(durable)
    for step in [*log, Flush()]:
        if isinstance(step, Write):
            assert step.offset % sector_size == 0, "writes begin at a sector"
            assert len(step.data) % sector_size == 0, "writes are whole sectors"
            for at in range(0, len(step.data), sector_size):
                pending[step.offset + at] = step.data[at : at + sector_size]
            continue
        changed = {
            at: data for at, data in pending.items() if durable[at : at + sector_size] != data
        }
        for landed in _subsets(sorted(changed), chance):
            image = bytearray(durable)
            for at in landed:
                image[at : at + sector_size] = changed[at]
            yield bytes(image)
        for at, data in changed.items():
            durable[at : at + sector_size] = data
        pending = {}


def _subsets(sectors: list[int], chance: random.Random) -> Iterator[tuple[int, ...]]:
    if len(sectors) <= EXHAUSTIVE_SECTORS:
        for count in range(1, len(sectors) + 1):
            yield from itertools.combinations(sectors, count)
        return
    for cut in range(1, len(sectors) + 1):
        yield tuple(sectors[:cut])  # in order
        yield tuple(sectors[-cut:])  # backwards
    for one in sectors:
        yield (one,)
        yield tuple(at for at in sectors if at != one)
    for _ in range(SAMPLED_SUBSETS):
        yield tuple(at for at in sectors if chance.random() < 0.5)


def two_slots(
    *,
    sector_size: int,
    a: BootBits,
    b: BootBits,
    numbers: tuple[int, int] = (3, 4),
    extra_sectors: int = 0,
) -> MemoryDisk:
    """Make a small disk with an ESP and two slots of the USR type, as a flushed image."""
    array_sectors = gpt.ENTRY_COUNT * gpt.ENTRY_BYTES // sector_size
    disk_sectors = 3 + 2 * array_sectors + 12
    table = gpt.new_table(
        sector_size=sector_size, disk_sectors=disk_sectors, disk_guid=uuid.UUID(int=0xD15C)
    )
    first = table.header.first_usable_lba
    entries = [
        gpt.new_entry(
            number,
            type_guid=kind,
            part_guid=uuid.UUID(int=0xA0 + number),
            first_lba=first + 4 * at,
            last_lba=first + 4 * at + 3,
            name=name,
        ).with_attributes(bits.within(0))
        for at, (number, kind, name, bits) in enumerate(
            (
                (1, uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), "ESP", BootBits()),
                (numbers[0], USR_TYPE, "USR-A", a),
                (numbers[1], USR_TYPE, "USR-B", b),
            )
        )
    ]
    disk = MemoryDisk(bytearray(disk_sectors * sector_size), sector_sizes=(sector_size,))
    initialise(disk, table.with_entries(entries))
    disk.image += bytes(extra_sectors * sector_size)
    disk.log.clear()
    return disk


def grub_reads(image: bytes, sector_size: int) -> bytes | None:
    """Return the entries as GRUB would take them, or nothing when it finds no whole copy.

    The primary at sector 1, else the backup at the disk's last sector; written from the
    specification alone.
    """
    return whole_copy(image, sector_size, 1) or whole_copy(
        image, sector_size, len(image) // sector_size - 1
    )


def whole_copy(image: bytes, sector_size: int, lba: int) -> bytes | None:
    """Return the entries of the copy whose header is at `lba`, when both check out."""
    header = bytearray(image[lba * sector_size : lba * sector_size + 92])
    if header[:8] != b"EFI PART" or struct.unpack_from("<Q", header, 24)[0] != lba:
        return None
    (crc,) = struct.unpack_from("<I", header, 16)
    header[16:20] = bytes(4)
    if zlib.crc32(header) != crc:
        return None
    entries_lba, count, size, entries_crc = struct.unpack_from("<QIII", header, 72)
    begin = entries_lba * sector_size
    entries = image[begin : begin + count * size]
    return entries if zlib.crc32(entries) == entries_crc else None
