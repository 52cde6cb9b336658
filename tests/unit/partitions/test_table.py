"""Reading and writing tables: which copy is believed, what is mended, what is left alone.

That power may fail at any instant is shown in `tests/sim/test_gpt_power_cuts.py`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from partitions import gpt
from partitions.attributes import BootBits
from partitions.copies import Belief
from partitions.disk import Access, open_disk
from partitions.errors import (
    DeviceBusyError,
    DeviceOpenError,
    DeviceReadError,
    GptAmbiguousError,
    GptChangedError,
    GptDamagedError,
    GptEntryError,
    GptMissingError,
)
from partitions.gpt import Table
from partitions.table import load, read_table, store, write_table
from tests.sim.gpt_disk import Flush, MemoryDisk, Write, two_slots, whole_copy

PROVEN = BootBits(priority=1, successful=True)
TRIAL = BootBits(priority=2, tries=1)


def _disk(sector_size: int = 512) -> MemoryDisk:
    return two_slots(sector_size=sector_size, a=PROVEN, b=BootBits())


def _armed(table: Table) -> Table:
    return table.with_attributes({4: TRIAL.within(0)})


def _last(disk: MemoryDisk, sector_size: int = 512) -> int:
    return len(disk.image) // sector_size - 1


def _spoil(disk: MemoryDisk, lba: int, sector_size: int = 512) -> None:
    disk.image[lba * sector_size + 20] ^= 0xFF


@pytest.mark.parametrize("sector_size", gpt.SECTOR_SIZES)
def test_a_files_sector_size_is_where_its_table_is_valid(sector_size: int) -> None:
    disk = _disk(sector_size)
    disk.sector_sizes = gpt.SECTOR_SIZES
    table = load(disk)
    assert table.sector_size == sector_size
    assert [entry.name for entry in table.entries] == ["ESP", "USR-A", "USR-B"]


@pytest.mark.parametrize("sector_size", gpt.SECTOR_SIZES)
def test_the_sector_size_is_found_by_the_backup_alone(sector_size: int) -> None:
    disk = _disk(sector_size)
    disk.sector_sizes = gpt.SECTOR_SIZES
    _spoil(disk, 1, sector_size)
    assert load(disk).sector_size == sector_size


def test_a_disk_with_valid_tables_for_both_sector_sizes_is_refused() -> None:
    disk, other = _disk(512), _disk(4096)
    size = max(len(disk.image), len(other.image)) + 64 * 4096
    mixed = MemoryDisk(bytearray(size), sector_sizes=gpt.SECTOR_SIZES)
    mixed.image[: len(other.image)] = other.image
    # A 512-byte header and entries fit between the others: at the end of the disk.
    table = gpt.new_table(
        sector_size=512, disk_sectors=size // 512, disk_guid=load(disk).header.disk_guid
    )
    last = size // 512 - 1
    header = replace(table.header, own_lba=last, other_lba=1, entries_lba=last - 32)
    mixed.image[(last - 32) * 512 : last * 512] = table.array
    mixed.image[last * 512 :] = gpt.encode_header(header, rest=bytes(420))
    with pytest.raises(GptAmbiguousError, match="one for 4096-byte sectors"):
        load(mixed)


@pytest.mark.parametrize("sector_size", gpt.SECTOR_SIZES)
def test_the_backup_is_written_and_flushed_before_the_primary(sector_size: int) -> None:
    disk = _disk(sector_size)
    old = load(disk)
    store(disk, old=old, new=_armed(old))
    entries = 128 * 128
    last = _last(disk, sector_size) * sector_size
    assert [
        (step.offset, len(step.data)) if isinstance(step, Write) else "flush" for step in disk.log
    ] == [
        (last - entries, entries),
        (last, sector_size),
        "flush",
        (2 * sector_size, entries),
        (sector_size, sector_size),
        "flush",
    ]


def test_writing_leaves_the_first_sector_and_all_partitions_alone() -> None:
    disk = _disk()
    disk.image[:512] = random.Random(1).randbytes(512)  # a hybrid MBR, or boot code
    table = load(disk)
    usable = slice(table.header.first_usable_lba * 512, (table.header.last_usable_lba + 1) * 512)
    disk.image[usable] = random.Random(2).randbytes(usable.stop - usable.start)
    before = bytes(disk.image)
    store(disk, old=table, new=_armed(table))
    assert disk.image[:512] == before[:512]
    assert disk.image[usable] == before[usable]


def test_what_follows_a_header_in_its_sector_is_kept() -> None:
    disk = _disk(4096)
    for lba in (1, _last(disk, 4096)):
        disk.image[lba * 4096 + 92 : (lba + 1) * 4096] = b"k" * (4096 - 92)
    table = load(disk)
    store(disk, old=table, new=_armed(table))
    for lba in (1, _last(disk, 4096)):
        assert disk.image[lba * 4096 + 92 : (lba + 1) * 4096] == b"k" * (4096 - 92)


def test_the_array_may_end_within_a_sector_and_the_rest_of_it_is_kept() -> None:
    disk = _disk(4096)
    table = load(disk)
    odd = replace(table, array=table.array[: 100 * 128])
    crc = gpt.array_crc(odd.array)
    last = _last(disk, 4096)
    for own, other, entries in ((1, last, 2), (last, 1, last - 4)):
        header = replace(
            table.header,
            own_lba=own,
            other_lba=other,
            entries_lba=entries,
            entry_count=100,
            entries_crc=crc,
        )
        disk.image[own * 4096 : (own + 1) * 4096] = gpt.encode_header(header, rest=bytes(4004))
        disk.image[entries * 4096 + 12800 : entries * 4096 + 16384] = b"k" * 3584
    odd = load(disk)
    assert odd.healthy
    store(disk, old=odd, new=_armed(odd))
    assert load(disk).array == _armed(odd).array
    for entries in (2, last - 4):
        assert disk.image[entries * 4096 + 12800 : entries * 4096 + 16384] == b"k" * 3584


def test_nothing_is_written_when_nothing_changes() -> None:
    disk = _disk()
    table = load(disk)
    store(disk, old=table, new=table)
    assert disk.log == []


@pytest.mark.parametrize("lba", [1, 2, -1, -2], ids=["header", "entries", "backup", "its entries"])
def test_one_damaged_copy_is_read_around_and_mended_by_the_next_write(lba: int) -> None:
    disk = _disk()
    whole = load(disk)
    _spoil(disk, lba % (_last(disk) + 1))
    damaged = load(disk)
    assert damaged.array == whole.array
    assert len(damaged.faults) == 1
    store(disk, old=damaged, new=damaged)
    assert load(disk) == whole


def test_a_damaged_primary_is_restored_before_the_only_whole_copy_is_touched() -> None:
    disk = _disk()
    table = load(disk)
    _spoil(disk, 1)
    store(disk, old=load(disk), new=_armed(table))
    first_flush = disk.log.index(Flush())
    offsets = [step.offset for step in disk.log[:first_flush] if isinstance(step, Write)]
    assert offsets == [2 * 512, 512]


def test_two_whole_copies_that_name_other_partitions_are_not_chosen_between() -> None:
    disk = _disk()
    table = load(disk)
    last = _last(disk)
    array = bytearray(table.array)
    array[2 * 128 + 40] ^= 1  # partition 3 ends one sector earlier
    header = replace(
        table.header,
        own_lba=last,
        other_lba=1,
        entries_lba=last - 32,
        entries_crc=gpt.array_crc(bytes(array)),
    )
    disk.image[(last - 32) * 512 : last * 512] = array
    disk.image[last * 512 :] = gpt.encode_header(header, rest=bytes(420))
    with pytest.raises(GptAmbiguousError):
        load(disk)
    assert load(disk, belief=Belief.PRIMARY).array == table.array


def test_a_grown_disk_gets_its_backup_at_the_new_end_and_the_room_between() -> None:
    disk = _disk()
    disk.image += bytes(100 * 512)
    grown = load(disk)
    assert "the disk grew" in grown.faults[0]
    store(disk, old=grown, new=grown)
    table = load(disk)
    assert table.healthy
    assert table.header.last_usable_lba == _last(disk) - 33
    assert whole_copy(bytes(disk.image), 512, _last(disk)) == table.array


def test_a_disk_cut_off_behind_its_partitions_is_read_but_has_no_room_to_be_mended() -> None:
    disk = _disk()
    whole = load(disk)
    del disk.image[-8 * 512 :]
    table = load(disk)
    assert "outside the disk" in table.faults[0]
    assert table.array == whole.array
    with pytest.raises(GptEntryError, match="usable are"):
        store(disk, old=table, new=table)
    assert disk.log == []


def test_a_disk_shorter_than_its_partitions_is_damaged() -> None:
    disk = _disk()
    del disk.image[-40 * 512 :]
    with pytest.raises(GptDamagedError, match="of a disk of"):
        load(disk)


def test_a_disk_without_a_gpt_is_told_from_one_with_a_broken_gpt() -> None:
    disk = _disk()
    _spoil(disk, 1)
    _spoil(disk, _last(disk))
    with pytest.raises(GptDamagedError, match="reserved 255"):
        load(disk)
    with pytest.raises(GptMissingError, match="no GPT signature"):
        load(MemoryDisk(bytearray(1_000_000)))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 4096])
def test_a_disk_too_small_for_any_table_has_none(size: int) -> None:
    with pytest.raises(GptMissingError):
        load(MemoryDisk(bytearray(size)))


def test_an_entry_outside_the_disk_is_refused_even_with_good_crcs() -> None:
    disk = _disk()
    table = load(disk)
    with pytest.raises(GptEntryError):
        store(disk, old=table, new=_far_out(table))
    assert disk.log == []


def _far_out(table: Table) -> Table:
    entry = table.entries[0]
    raw = entry.raw[:40] + (2**40).to_bytes(8, "little") + entry.raw[48:]
    return table.with_entries([replace(entry, raw=raw)])


def test_an_edit_of_a_table_that_changed_meanwhile_is_refused() -> None:
    disk = _disk()
    seen = load(disk)
    store(disk, old=seen, new=_armed(seen))
    disk.log.clear()
    with pytest.raises(GptChangedError):
        store(disk, old=seen, new=seen.with_attributes({3: 0}))
    assert disk.log == []


class BadSectors(MemoryDisk):
    """A disk that cannot read some of its sectors."""

    bad: frozenset[int] = frozenset()

    @override
    def pread(self, offset: int, size: int) -> bytes:
        if self.bad & set(range(offset // 512, -(-(offset + size) // 512))):
            raise DeviceReadError(f"reading at byte {offset} failed: Input/output error")
        return super().pread(offset, size)

    @override
    def pwrite(self, offset: int, data: bytes) -> None:
        super().pwrite(offset, data)
        self.bad = self.bad - set(range(offset // 512, (offset + len(data)) // 512))


@pytest.mark.parametrize("lba", [1, 5, -1, -5])
def test_a_bad_sector_in_one_copy_is_what_the_other_is_for(lba: int) -> None:
    good = _disk()
    disk = BadSectors(bytearray(good.image), sector_sizes=(512,))
    disk.bad = frozenset({lba % (_last(disk) + 1)})
    table = load(disk)
    assert "Input/output error" in table.faults[0]
    store(disk, old=table, new=_armed(table))
    assert load(disk).healthy


def test_a_disk_that_cannot_be_read_at_all_says_so() -> None:
    disk = BadSectors(bytearray(_disk().image), sector_sizes=(512,))
    disk.bad = frozenset(range(_last(disk) + 1))
    with pytest.raises(DeviceReadError, match="Input/output error"):
        load(disk)


def test_a_table_travels_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(_disk().image)
    old = read_table(path)
    write_table(path, old, _armed(old))
    assert read_table(path).array == _armed(old).array


@pytest.mark.parametrize("content", [b"", bytes(1_000_000), b"x" * 99_999])
def test_an_error_about_a_table_names_the_disk(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    with pytest.raises(GptMissingError, match=str(path)):
        read_table(path)


def test_a_missing_disk_and_a_folder_are_no_disks(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DeviceOpenError, match=str(path)):
            read_table(path)


def test_a_table_is_not_written_while_another_program_has_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(_disk().image)
    old = read_table(path)
    with open_disk(path, Access.WRITE) as other, open_disk(path, Access.WRITE) as mine:
        other.lock()
        with pytest.raises(DeviceBusyError, match="locked by another program"):
            mine.lock(patience_s=0)
    write_table(path, old, _armed(old))  # and may be, afterwards
