"""Power may fail at any instant of a table write, from any state of the two copies.

Promise 2 and 3 of the design, for the partition table: the loader finds the table before or the
table after, whole; and the next run goes on from there.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

import pytest

from partitions import gpt
from partitions.attributes import BootBits
from partitions.firmware import GRUB, candidates, choose
from partitions.gpt import Table
from partitions.table import load, store
from tests.sim.gpt_disk import (
    MemoryDisk,
    PowerCutError,
    crash_images,
    grub_reads,
    two_slots,
    whole_copy,
)

A_PROVEN = BootBits(priority=1, successful=True)
B_PROVEN = BootBits(priority=2, successful=True)
B_TRIAL = BootBits(priority=2, tries=1)
NEVER = BootBits()

EDITS: dict[str, tuple[tuple[BootBits, BootBits], tuple[BootBits, BootBits]]] = {
    "arm": ((A_PROVEN, NEVER), (A_PROVEN, B_TRIAL)),
    "disarm": ((A_PROVEN, B_PROVEN), (A_PROVEN, NEVER)),
    "confirm": ((A_PROVEN, BootBits(priority=2)), (A_PROVEN, B_PROVEN)),
    "flip both": ((A_PROVEN, B_PROVEN), (B_TRIAL, A_PROVEN)),
    "mend only": ((A_PROVEN, B_TRIAL), (A_PROVEN, B_TRIAL)),
}

SECOND_CUTS = 6  # on average, so many states of a write have the mending write cut, too

Damage = Callable[[MemoryDisk, int, random.Random], None]


def _spoil(first: int, count: int, how: str) -> Damage:
    """Damage sectors; negative ones count from the end of the disk."""

    def damage(disk: MemoryDisk, sector_size: int, chance: random.Random) -> None:
        sectors = len(disk.image) // sector_size
        for sector in range(first % sectors, first % sectors + count):
            at = sector * sector_size
            if how == "flip":
                disk.image[at + 60] ^= 0x10
            else:
                rubbish = bytes(sector_size) if how == "zero" else chance.randbytes(sector_size)
                disk.image[at : at + sector_size] = rubbish

    return damage


def _both(*damages: Damage) -> Damage:
    def damage(disk: MemoryDisk, sector_size: int, chance: random.Random) -> None:
        for one in damages:
            one(disk, sector_size, chance)

    return damage


def _arrays(sector_size: int) -> int:
    return gpt.ENTRY_COUNT * gpt.ENTRY_BYTES // sector_size


def _array_at_front(how: str) -> Damage:
    return lambda disk, size, chance: _spoil(2, _arrays(size), how)(disk, size, chance)


def _array_at_back(how: str) -> Damage:
    return lambda disk, size, chance: _spoil(-1 - _arrays(size), _arrays(size), how)(
        disk, size, chance
    )


WHOLE: dict[str, Damage] = {
    "both good": lambda _disk, _size, _chance: None,
    "primary header zero": _spoil(1, 1, "zero"),
    "primary header rubbish": _spoil(1, 1, "random"),
    "primary header flipped": _spoil(1, 1, "flip"),
    "primary entries flipped": _spoil(2, 1, "flip"),
    "primary entries rubbish": _array_at_front("random"),
    "primary gone": _both(_spoil(1, 1, "zero"), _array_at_front("zero")),
    "backup header zero": _spoil(-1, 1, "zero"),
    "backup header flipped": _spoil(-1, 1, "flip"),
    "backup entries rubbish": _array_at_back("random"),
    "backup gone": _both(_spoil(-1, 1, "random"), _array_at_back("random")),
}
CROSSED: dict[str, Damage] = {  # no copy is whole, yet all that is needed is there
    "primary entries and backup header gone": _both(
        _array_at_front("random"), _spoil(-1, 1, "zero")
    ),
    "primary header and backup entries gone": _both(_spoil(1, 1, "zero"), _array_at_back("random")),
}
GROWN: dict[str, int] = {"by 1 sector": 1, "by 7 sectors": 7, "by 200 sectors": 200}


def _with_bits(table: Table, bits: tuple[BootBits, BootBits]) -> Table:
    seen = candidates(table, GRUB)
    return table.with_attributes(
        {entry.number: one.within(entry.attributes) for entry, one in zip(seen, bits, strict=True)}
    )


def _target(table: Table) -> str | None:
    chosen = choose(candidates(table, GRUB))
    return chosen.name if chosen else None


class Examiner:
    """Counts the states it looks at, and says of each whether a system would be found."""

    def __init__(self, sector_size: int, *, old: Table, new: Table, grub_found_it: bool) -> None:
        self.sector_size = sector_size
        self.old, self.new = old, new
        self.grub_found_it = grub_found_it
        self.either = {old.array, new.array}
        self.states = 0
        assert _target(old), "a system boots before"
        assert _target(new), "and one after"

    def disk(self, image: bytes) -> MemoryDisk:
        return MemoryDisk(bytearray(image), sector_sizes=(self.sector_size,))

    def examine(self, image: bytes) -> Table:
        self.states += 1
        table = load(self.disk(image))
        assert table.array in self.either
        if self.grub_found_it:  # then it always does
            assert grub_reads(image, self.sector_size) in self.either
        return table

    def cuts_of(self, image: bytes, chance: random.Random) -> Iterator[bytes]:
        """Write the new table on `image`; yield each state that a cut leaves, once."""
        disk = self.disk(image)
        store(disk, old=load(disk), new=_with_new_bits(load(disk), self.new))
        self.finished(disk)
        seen = set()
        for state in crash_images(image, disk.log, sector_size=self.sector_size, chance=chance):
            if state not in seen:
                seen.add(state)
                yield state

    def finished(self, disk: MemoryDisk) -> None:
        table = load(disk)
        assert table.healthy, table.faults
        assert table.array == self.new.array
        last = len(disk.image) // self.sector_size - 1
        for lba in (1, last):
            assert whole_copy(bytes(disk.image), self.sector_size, lba) == self.new.array


def _with_new_bits(table: Table, new: Table) -> Table:
    return table.with_attributes({entry.number: entry.attributes for entry in new.entries})


def _count_cuts(disk: MemoryDisk, sector_size: int, new_bits: tuple[BootBits, BootBits]) -> int:
    """Cut the write at every instant, and the write that mends each of those, too."""
    start = bytes(disk.image)
    chance = random.Random(20261123)
    old = load(disk)
    examiner = Examiner(
        sector_size,
        old=old,
        new=_with_bits(old, new_bits),
        grub_found_it=grub_reads(start, sector_size) is not None,
    )
    again = SECOND_CUTS / max(1, sum(1 for _ in examiner.cuts_of(start, chance)))
    for state in examiner.cuts_of(start, chance):
        examiner.examine(state)
        for second in examiner.cuts_of(state, chance) if chance.random() < again else ():
            examiner.examine(second)
    return examiner.states


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("sector_size", gpt.SECTOR_SIZES)
@pytest.mark.parametrize("numbers", [(3, 4), (3, 100)], ids=["near", "far"])
def test_a_cut_at_any_instant_leaves_the_old_or_the_new_table(
    sector_size: int, edit: str, numbers: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    (a, b), new_bits = EDITS[edit]
    states = 0
    for damage in (WHOLE | CROSSED).values():
        disk = two_slots(sector_size=sector_size, a=a, b=b, numbers=numbers)
        damage(disk, sector_size, random.Random(1))
        states += _count_cuts(disk, sector_size, new_bits)
    _say(capsys, f"{edit}, sectors of {sector_size}, entries {numbers}", states)


@pytest.mark.parametrize("grown", GROWN)
@pytest.mark.parametrize("sector_size", gpt.SECTOR_SIZES)
@pytest.mark.parametrize(
    "damage", ["both good", "primary entries rubbish", "backup gone"], ids=lambda name: name
)
def test_a_cut_while_the_backup_moves_to_a_grown_disks_end_loses_nothing(
    sector_size: int, grown: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (a, b), new_bits = EDITS["arm"]
    disk = two_slots(sector_size=sector_size, a=a, b=b)
    WHOLE[damage](disk, sector_size, random.Random(1))
    disk.image += bytes(GROWN[grown] * sector_size)
    states = _count_cuts(disk, sector_size, new_bits)
    _say(capsys, f"{damage}, grown {grown}, sectors of {sector_size}", states)


def test_two_copies_that_a_cut_left_apart_are_believed_by_the_primary_and_mended() -> None:
    disk = two_slots(sector_size=512, a=A_PROVEN, b=NEVER)
    old = load(disk)
    new = _with_bits(old, (A_PROVEN, B_TRIAL))
    disk.writes_left = 2  # the backup's entries and its header
    with pytest.raises(PowerCutError):
        store(disk, old=old, new=new)
    disk.writes_left = None
    between = load(disk)
    assert between.array == old.array
    assert between.faults == ("the backup table differs from the primary",)
    store(disk, old=between, new=between)
    assert load(disk).healthy
    assert grub_reads(bytes(disk.image), 512) == old.array


def _say(capsys: pytest.CaptureFixture[str], what: str, states: int) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n    {states} states examined: {what}")
