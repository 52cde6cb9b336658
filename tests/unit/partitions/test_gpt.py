"""The table as a value: what is understood, what is kept, what is refused."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import gpt
from partitions.errors import GptEntryError
from partitions.gpt import CopyFaultError, Entry, Table

USR = uuid.UUID("5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6")
DISK = uuid.UUID("00000000-0000-0000-0000-000000000001")


def _table(*, sectors: int = 262_144, sector_size: int = 512) -> Table:
    return gpt.new_table(sector_size=sector_size, disk_sectors=sectors, disk_guid=DISK)


def _entry(number: int, first: int, last: int, *, guid: int = 0) -> Entry:
    return gpt.new_entry(
        number,
        type_guid=USR,
        part_guid=uuid.UUID(int=guid or number),
        first_lba=first,
        last_lba=last,
        name=f"part-{number}",
    )


def _header_sector(**changes: int) -> bytes:
    """Pack a header with the struct module alone, its CRC made to fit."""
    fields = {
        "revision": 0x10000,
        "size": 92,
        "reserved": 0,
        "own": 1,
        "other": 262_143,
        "first": 34,
        "last": 262_110,
        "entries": 2,
        "count": 128,
        "entry_size": 128,
    } | changes
    head = struct.pack(
        "<8sIIII4Q16sQIII",
        b"EFI PART",
        fields["revision"],
        fields["size"],
        0,
        fields["reserved"],
        fields["own"],
        fields["other"],
        fields["first"],
        fields["last"],
        DISK.bytes_le,
        fields["entries"],
        fields["count"],
        fields["entry_size"],
        0,
    )
    sector = bytearray(head.ljust(512, b"\0"))
    covered = sector[: max(92, min(fields["size"], 512))]
    struct.pack_into("<I", sector, 16, zlib.crc32(covered))
    return bytes(sector)


def test_a_fresh_table_has_the_places_of_the_reference_disk() -> None:
    header = _table().header
    assert (header.first_usable_lba, header.last_usable_lba) == (34, 262_110)
    assert (header.entries_lba, header.other_lba) == (2, 262_143)


def test_with_4096_byte_sectors_the_table_takes_four_of_them() -> None:
    header = _table(sectors=1024, sector_size=4096).header
    assert (header.first_usable_lba, header.last_usable_lba) == (6, 1018)


def test_a_header_survives_reading_and_writing() -> None:
    sector = _header_sector()
    header = gpt.parse_header(sector, lba=1, disk_sectors=262_144)
    assert gpt.encode_header(header, rest=sector[92:]) == sector


def test_header_bytes_that_nobody_knows_are_kept_and_covered_by_the_crc() -> None:
    sector = bytearray(_header_sector(size=100))
    sector[92:100] = b"whatever"
    sector[16:20] = bytes(4)
    struct.pack_into("<I", sector, 16, zlib.crc32(sector[:100]))
    header = gpt.parse_header(bytes(sector), lba=1, disk_sectors=262_144)
    assert header.tail == b"whatever"
    assert gpt.encode_header(header, rest=bytes(sector[100:])) == sector


@pytest.mark.parametrize(
    ("sector", "reason"),
    [
        (bytes(512), "no GPT signature"),
        (_header_sector(revision=0x20000), "revision 0x20000"),
        (_header_sector(size=91), "size 91"),
        (_header_sector(size=513), "size 513"),
        (_header_sector(reserved=1), "reserved 1"),
        (_header_sector(own=2), "says it lies at sector 2, it lies at 1"),
        (_header_sector(entry_size=100), "entries of 100 bytes"),
        (_header_sector(entry_size=384), "entries of 384 bytes"),
        (_header_sector(entry_size=0), "entries of 0 bytes"),
        (_header_sector(count=0), "has 0 entries"),
        (_header_sector(count=2**32 - 1), "bytes of entries, over"),
        (_header_sector(last=262_144), "of a disk of 262144"),
        (_header_sector(first=300_000), "uses sectors 300000"),
        (_header_sector(entries=1), "entries in sectors 1 to 32"),
        (_header_sector(entries=3), "entries in sectors 3 to 34"),
        (_header_sector(entries=2**64 - 1), "entries in sectors 18446744073709551615"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_contradicts_itself_or_the_disk_is_no_header(
    sector: bytes, reason: str
) -> None:
    with pytest.raises(CopyFaultError, match=reason):
        gpt.parse_header(sector, lba=1, disk_sectors=262_144)


@given(st.integers(0, 91), st.integers(0, 7))
def test_no_bit_of_a_header_may_flip_unseen(byte: int, bit: int) -> None:
    sector = bytearray(_header_sector())
    sector[byte] ^= 1 << bit
    with pytest.raises(CopyFaultError):
        gpt.parse_header(bytes(sector), lba=1, disk_sectors=262_144)


@given(st.binary(min_size=512, max_size=512))
def test_rubbish_is_never_more_than_a_fault(sector: bytes) -> None:
    with pytest.raises(CopyFaultError):
        gpt.parse_header(b"EFI PART" + sector[8:], lba=1, disk_sectors=100)


def test_a_guid_has_its_first_three_groups_little_endian() -> None:
    raw = _entry(1, 34, 40).raw
    assert raw[:8].hex() == "f4f5fb5d4828ac4b"
    assert Entry(number=1, raw=raw).type_guid == USR


def test_a_name_ends_at_its_first_zero_whatever_stands_behind() -> None:
    raw = bytearray(_entry(1, 34, 40).raw)
    raw[56:128] = "USR-A".encode("utf-16-le") + b"\0\0" + b"\xa5" * 60
    assert Entry(number=1, raw=bytes(raw)).name == "USR-A"


def test_a_name_of_36_units_has_no_end_mark() -> None:
    entry = gpt.new_entry(1, type_guid=USR, part_guid=USR, first_lba=34, last_lba=40, name="ü" * 36)
    assert entry.name == "ü" * 36


@pytest.mark.parametrize("name", ["x" * 37, "\N{GRINNING FACE}" * 19, "a\0b"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(GptEntryError):
        gpt.new_entry(1, type_guid=USR, part_guid=USR, first_lba=34, last_lba=40, name=name)


@given(st.integers(0, 2**64 - 1))
def test_changing_attributes_changes_nothing_else(attributes: int) -> None:
    raw = bytes(range(128))
    changed = Entry(number=1, raw=raw).with_attributes(attributes)
    assert changed.attributes == attributes
    assert changed.raw[:48] + changed.raw[56:] == raw[:48] + raw[56:]


def test_an_edit_returns_a_new_table_and_leaves_the_old_one() -> None:
    table = _table().with_entries([_entry(3, 34, 40)])
    edited = table.with_attributes({3: 1 << 60})
    assert [entry.attributes for entry in table.entries] == [0]
    assert [entry.attributes for entry in edited.entries] == [1 << 60]


def test_entries_larger_than_128_bytes_keep_their_tails() -> None:
    header = replace(_table().header, entry_size=256, entry_count=64)
    raw = _entry(2, 34, 40).raw + b"T" * 128
    array = bytes(256) + raw + bytes(62 * 256)
    table = replace(_table(), header=header, array=array)
    edited = table.with_attributes({2: 7})
    assert [entry.number for entry in table.entries] == [2]
    assert edited.array[256 + 128 : 512] == b"T" * 128
    assert edited.entries[0].attributes == 7


@pytest.mark.parametrize("number", [0, 129])
def test_a_number_outside_the_table_is_refused(number: int) -> None:
    with pytest.raises(GptEntryError, match="not in 1 to 128"):
        _table().with_entries([_entry(number, 34, 40)])


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([_entry(1, 33, 40)], "partition 1 has sectors 33 to 40, usable are 34"),
        ([_entry(1, 34, 262_111)], "34 to 262111, usable are 34 to 262110"),
        ([_entry(1, 50, 49)], "partition 1 has sectors 50 to 49"),
        ([_entry(1, 34, 40), _entry(2, 40, 50)], "partitions 1 and 2 overlap"),
        ([_entry(1, 41, 60), _entry(2, 34, 41)], "partitions 2 and 1 overlap"),
        ([_entry(1, 34, 40, guid=9), _entry(2, 41, 50, guid=9)], "have the same GUID"),
    ],
)
def test_partitions_that_disturb_each_other_are_refused(entries: list[Entry], reason: str) -> None:
    with pytest.raises(GptEntryError, match=reason):
        gpt.check_entries(_table().with_entries(entries))


def test_a_disk_without_room_for_two_tables_is_refused() -> None:
    with pytest.raises(GptEntryError, match="no room"):
        _table(sectors=66)


@pytest.mark.parametrize(
    ("sectors", "count"), [(100, "63000000"), (2**33, "ffffffff")], ids=["small", "huge"]
)
def test_the_protective_mbr_covers_the_disk_or_all_it_can(sectors: int, count: str) -> None:
    mbr = gpt.protective_mbr(disk_sectors=sectors)
    assert len(mbr) == 512
    assert mbr[446:462].hex() == f"00000200eeffffff01000000{count}"
    assert mbr[510:] == b"\x55\xaa"
