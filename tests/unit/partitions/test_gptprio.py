"""The GPT keeper: ranks as `cgpt prioritize` deals them, one table write a verb.

What every keeper promises is in `test_boot_contract.py`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.attributes import BootBits
from partitions.boot import Places, open_boot_control
from partitions.boot.gptprio import GptPriorities, prioritize
from partitions.errors import BootControlError, GptMissingError, PartitionUnknownError
from partitions.firmware import GRUB, USR_TYPE, candidates
from partitions.gpt import new_entry
from partitions.slots import PartRef, Slot, SlotLayout
from partitions.table import read_table, write_table
from tests.sim.gpt_disk import two_slots

LAYOUT: SlotLayout = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}
Bits = tuple[int, int, int]


def _bits(values: Bits) -> BootBits:
    return BootBits(priority=values[0], tries=values[1], successful=bool(values[2]))


def _disk(folder: Path, a: Bits = (1, 0, 1), b: Bits = (0, 0, 0)) -> Path:
    disk = folder / "disk.img"
    disk.write_bytes(two_slots(sector_size=512, a=_bits(a), b=_bits(b)).image)
    return disk


def _seen(disk: Path) -> tuple[Bits, ...]:
    return tuple(
        (bits.priority, bits.tries, int(bits.successful))
        for bits in (BootBits.of(entry.attributes) for entry in candidates(read_table(disk), GRUB))
    )


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ((1, 0), 1, (1, 2)),
        ((1, 2), 0, (2, 1)),
        ((2, 1), 1, (1, 2)),
        ((15, 3), 1, (1, 2)),
        ((3, 3), 1, (1, 2)),
        ((0, 0), 1, (0, 1)),
        ((4, 7, 7, 0, 9), 0, (3, 1, 1, 0, 2)),
    ],
)
def test_ranks_are_dealt_as_cgpt_does(
    before: tuple[int, ...], wanted: int, after: tuple[int, ...]
) -> None:
    assert prioritize(before, wanted) == after


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.data())
def test_the_wanted_one_is_alone_at_the_top_and_order_is_kept(
    before: list[int], data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(0, len(before) - 1))
    after = prioritize(before, wanted)
    others = [at for at in range(len(before)) if at != wanted]
    assert 1 <= after[wanted] <= 15
    assert len(set(before)) > 14 or all(after[at] < after[wanted] for at in others)
    for one, two in itertools.combinations(others, 2):
        assert (before[one] < before[two]) <= (after[one] <= after[two])
        assert (before[one] == before[two]) <= (after[one] == after[two])
    assert all((before[at] == 0) == (after[at] == 0) for at in others)
    assert prioritize(after, wanted) == after


def test_arming_writes_what_flatcars_engine_leaves(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    GptPriorities(disk, LAYOUT).arm(Slot.B, tries=1)
    assert _seen(disk) == ((1, 0, 1), (2, 1, 0))


def test_confirming_writes_success_and_no_tries(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (2, 0, 0))
    GptPriorities(disk, LAYOUT).confirm(Slot.B)
    assert _seen(disk) == ((1, 0, 1), (2, 0, 1))


def test_disarming_writes_three_zeros(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (2, 3, 1))
    GptPriorities(disk, LAYOUT).disarm(Slot.B)
    assert _seen(disk) == ((1, 0, 1), (0, 0, 0))


def test_rejecting_writes_zeros_and_puts_the_other_on_top(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 2, 1), (7, 0, 0))
    GptPriorities(disk, LAYOUT).reject(Slot.B)
    assert _seen(disk) == ((1, 2, 1), (0, 0, 0))


def test_a_third_partition_of_the_type_is_ranked_along(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (2, 0, 1))
    _add_third(disk, BootBits(priority=9, successful=True))
    control = GptPriorities(disk, LAYOUT)
    assert control.read().target is None  # the loader would start a partition of no slot
    control.arm(Slot.B, tries=3)
    assert _seen(disk) == ((2, 0, 1), (1, 0, 1), (3, 3, 0))
    assert control.read().target is Slot.B


def _add_third(disk: Path, bits: BootBits) -> None:
    """Turn partition 1 into one that the loader looks at."""
    table = read_table(disk)
    esp = table.entries[0]
    third = new_entry(
        1,
        type_guid=USR_TYPE,
        part_guid=esp.part_guid,
        first_lba=esp.first_lba,
        last_lba=esp.last_lba,
        name="USR-C",
    )
    write_table(disk, table, table.with_entries([third.with_attributes(bits.within(0))]))


def test_other_attribute_bits_stay_as_they_are(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    others = 1 << 60 | 0b111 | 1 << 63
    table = read_table(disk)
    write_table(disk, table, table.with_attributes({4: others}))
    GptPriorities(disk, LAYOUT).arm(Slot.B, tries=1)
    assert read_table(disk).entries[2].attributes == others | 0x0012 << 48


def test_a_damaged_copy_is_mended_even_when_the_bits_are_right(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    image = bytearray(disk.read_bytes())
    image[-512] ^= 1
    disk.write_bytes(image)
    GptPriorities(disk, LAYOUT).confirm(Slot.A)
    assert read_table(disk).healthy


def test_a_disarm_is_not_done_while_the_backup_still_holds_the_slot_armed(tmp_path: Path) -> None:
    disk = _disk(tmp_path, (1, 0, 1), (0, 0, 0))
    armed = two_slots(sector_size=512, a=_bits((1, 0, 1)), b=_bits((2, 1, 0))).image
    image = bytearray(disk.read_bytes())
    image[-33 * 512 :] = armed[-33 * 512 :]  # what a cut in the middle of arming leaves
    disk.write_bytes(image)
    GptPriorities(disk, LAYOUT).disarm(Slot.B)
    image = bytearray(disk.read_bytes())
    image[512] ^= 1  # now the primary is lost
    disk.write_bytes(image)
    assert _seen(disk) == ((1, 0, 1), (0, 0, 0))


@pytest.mark.parametrize("layout", [
    {Slot.A: {"usr": PartRef(label="ESP")}, Slot.B: {"usr": PartRef(label="USR-B")}},
    {Slot.A: {"x": PartRef(label="USR-A"), "y": PartRef(label="USR-B")}, Slot.B: {}},
], ids=["of another type", "two"])  # fmt: skip
def test_a_slot_has_one_partition_that_the_loader_looks_at(
    tmp_path: Path, layout: SlotLayout
) -> None:
    with pytest.raises(BootControlError, match="it needs one"):
        GptPriorities(_disk(tmp_path), layout).read()


def test_a_slot_may_have_parts_that_the_loader_does_not_look_at(tmp_path: Path) -> None:
    layout: SlotLayout = {
        Slot.A: {"usr": PartRef(label="USR-A"), "kernel": PartRef(label="ESP")},
        Slot.B: {"usr": PartRef(label="USR-B")},
    }
    assert GptPriorities(_disk(tmp_path), layout).read().target is Slot.A


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _disk(tmp_path)
    old = read_table(disk)
    monkeypatch.setattr("partitions.boot.gptprio.read_table_past_cache", lambda _disk: old)
    with pytest.raises(BootControlError, match="does not keep its partition table"):
        GptPriorities(disk, LAYOUT).arm(Slot.B, tries=1)


@pytest.mark.parametrize("tries", [0, 16, -1])
def test_tries_that_four_bits_cannot_count_are_refused(tmp_path: Path, tries: int) -> None:
    disk = _disk(tmp_path)
    with pytest.raises(BootControlError, match=f"{tries} tries for slot b are not in 1 to 15"):
        GptPriorities(disk, LAYOUT).arm(Slot.B, tries=tries)
    assert _seen(disk)[1] == (0, 0, 0)


def test_errors_from_below_pass_through_with_their_codes(tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(100_000))
    with pytest.raises(GptMissingError):
        open_boot_control("gptprio", Places(disk=empty, layout=LAYOUT)).read()
    layout = {**LAYOUT, Slot.B: {"usr": PartRef(label="USR-C")}}
    with pytest.raises(PartitionUnknownError, match="no partition PARTLABEL=USR-C"):
        open_boot_control("gptprio", Places(disk=_disk(tmp_path), layout=layout)).read()


def test_an_unknown_keeper_is_refused_with_the_names_of_the_known(tmp_path: Path) -> None:
    with pytest.raises(BootControlError, match="no boot control 'lilo'; there are: gptprio"):
        open_boot_control("lilo", Places(disk=tmp_path, layout=LAYOUT))
