"""The firmware model boots as GRUB's `gptprio.next` does: its table, row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from partitions.attributes import BootBits
from partitions.errors import NothingBootableError
from partitions.firmware import CHROMEOS, GRUB, boot, boot_partition, spend
from partitions.slots import PartRef, Slot, SlotLayout
from partitions.table import read_table
from tests.sim.gpt_disk import two_slots, whole_copy

LAYOUT: SlotLayout = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}
Bits = tuple[int, int, int]


def _bits(values: Bits) -> BootBits:
    return BootBits(priority=values[0], tries=values[1], successful=bool(values[2]))


def _disk(path: Path, a: Bits, b: Bits) -> Path:
    disk = path / "disk.img"
    disk.write_bytes(two_slots(sector_size=512, a=_bits(a), b=_bits(b)).image)
    return disk


def _boots(disk: Path) -> str:
    try:
        return boot(disk, LAYOUT).name
    except NothingBootableError:
        return "none"


@pytest.mark.parametrize(
    ("a", "b", "boots"),
    [
        ((1, 0, 1), (2, 1, 0), "B A A"),
        ((1, 0, 1), (2, 2, 0), "B B A"),
        ((1, 0, 1), (1, 1, 0), "A A A"),  # a tie: the lower partition number wins
        ((1, 1, 0), (1, 0, 1), "A B B"),
        ((2, 3, 1), (1, 0, 1), "A A A"),
        ((15, 0, 0), (1, 0, 1), "B B B"),
        ((0, 0, 0), (1, 0, 1), "B B B"),
        ((0, 0, 1), (0, 0, 0), "none none none"),
        ((0, 0, 0), (0, 1, 0), "none none none"),
        ((0, 0, 0), (0, 0, 0), "none none none"),
        ((15, 0, 0), (14, 0, 0), "none none none"),
    ],
)
def test_three_boots_go_as_grubs_table_says(tmp_path: Path, a: Bits, b: Bits, boots: str) -> None:
    disk = _disk(tmp_path, a, b)
    assert " ".join(_boots(disk) for _ in range(3)) == boots


def test_tries_of_a_confirmed_slot_are_counted_down_too(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (2, 3, 1), (1, 0, 1))
    left = []
    for _ in range(4):
        boot(disk, LAYOUT)
        left.append(BootBits.of(read_table(disk).entries[1].attributes).tries)
    assert left == [2, 1, 0, 0]


def test_a_used_up_slot_keeps_its_priority(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (2, 1, 0))
    boot(disk, LAYOUT)
    bits = BootBits.of(read_table(disk).entries[2].attributes)
    assert (bits.priority, bits.tries) == (2, 0)


def test_nothing_is_written_when_no_try_is_counted(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    image = bytearray(disk.read_bytes())
    image[-1 * 512] ^= 1  # a damaged backup alone is no reason either
    disk.write_bytes(image)
    assert boot(disk, LAYOUT) is Slot.A
    assert disk.read_bytes() == image


def test_counting_a_try_mends_a_damaged_copy(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (2, 1, 0))
    image = bytearray(disk.read_bytes())
    image[512] ^= 1
    disk.write_bytes(image)
    assert boot(disk, LAYOUT) is Slot.B
    after = disk.read_bytes()
    assert whole_copy(after, 512, 1) == whole_copy(after, 512, len(after) // 512 - 1)


def test_the_primary_is_believed_even_when_the_backup_tells_otherwise(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    other = two_slots(sector_size=512, a=BootBits(), b=_bits((1, 0, 1)), numbers=(5, 6)).image
    image = bytearray(disk.read_bytes())
    image[-33 * 512 :] = other[-33 * 512 :]
    disk.write_bytes(image)
    assert boot(disk, LAYOUT) is Slot.A


def test_a_partition_of_no_slot_is_booted_but_not_taken_for_one(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    layout = {**LAYOUT, Slot.A: {"usr": PartRef(label="ESP")}}
    with pytest.raises(NothingBootableError, match="starts partition 3, of no slot"):
        boot(disk, layout)
    assert boot_partition(disk)[1].name == "USR-A"


def test_other_partition_types_do_not_count_whatever_their_bits(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    with pytest.raises(NothingBootableError, match=str(CHROMEOS.boot_type)):
        boot_partition(disk, rules=CHROMEOS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((3, 2, 0), (3, 1, 0)),
        ((3, 1, 0), (0, 0, 0)),  # the last try takes the priority along
        ((3, 4, 1), (3, 4, 1)),  # a successful one is never changed
        ((3, 0, 1), (3, 0, 1)),
    ],
)
def test_chromeos_firmware_counts_by_its_own_rule(before: Bits, after: Bits) -> None:
    assert spend(_bits(before), CHROMEOS) == _bits(after)


def test_a_rule_set_may_name_another_partition_type(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    esp = read_table(disk).entries[0].type_guid
    with pytest.raises(NothingBootableError):
        boot_partition(disk, rules=replace(GRUB, boot_type=esp))
