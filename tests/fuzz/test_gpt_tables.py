"""Invariant: whatever lies on a disk, reading its table gives a table or a coded error, no more.

CRCs are made to fit, so that what a header claims is reached, not only that it is damaged.
"""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitions.attributes import BootBits
from partitions.copies import Belief
from partitions.errors import TableError
from partitions.table import load, store
from tests.sim.gpt_disk import MemoryDisk, two_slots

pytestmark = pytest.mark.fuzz

DISK = bytes(
    two_slots(sector_size=512, a=BootBits(priority=1, successful=True), b=BootBits()).image
)
SECTORS = len(DISK) // 512
NUMBERS = st.one_of(
    st.integers(0, SECTORS + 2), st.integers(0, 2**64 - 1), st.sampled_from([2**32, 2**63])
)
FIELDS = [(8, 4), (12, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4)]
EDIT = st.tuples(st.sampled_from([512, (SECTORS - 1) * 512]), st.sampled_from(FIELDS), NUMBERS)


def _with_fitting_crcs(image: bytearray, at: int) -> None:
    entries_lba, count, size = struct.unpack_from("<QII", image, at + 72)
    begin, length = entries_lba * 512, count * size
    if begin + length <= len(image):
        struct.pack_into("<I", image, at + 88, zlib.crc32(image[begin : begin + length]))
    (header_size,) = struct.unpack_from("<I", image, at + 12)
    image[at + 16 : at + 20] = bytes(4)
    covered = image[at : at + min(header_size, 512)]
    struct.pack_into("<I", image, at + 16, zlib.crc32(covered))


@settings(max_examples=5000, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(EDIT, min_size=1, max_size=5), st.binary(max_size=64), st.integers(0, 16_000))
def test_no_claim_of_a_header_leads_out_of_the_disk_or_out_of_the_errors(
    edits: list[tuple[int, tuple[int, int], int]], rubbish: bytes, where: int
) -> None:
    image = bytearray(DISK)
    for at in (1024, (SECTORS - 33) * 512):
        image[at + where : at + where + len(rubbish)] = rubbish
    for at, (offset, width), number in edits:
        data = (number % 2 ** (8 * width)).to_bytes(width, "little")
        image[at + offset : at + offset + width] = data
    for at in (512, (SECTORS - 1) * 512):
        _with_fitting_crcs(image, at)
    for belief in Belief:
        disk = MemoryDisk(bytearray(image), sector_sizes=(512, 4096))
        try:
            table = load(disk, belief=belief)
            store(disk, old=table, new=table, belief=belief)
        except TableError:
            continue
        assert load(disk, belief=belief).array == table.array


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=20_000))
def test_rubbish_is_no_table(content: bytes) -> None:
    with pytest.raises(TableError):
        load(MemoryDisk(bytearray(content)))
