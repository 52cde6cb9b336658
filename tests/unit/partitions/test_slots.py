"""From names in the settings to bytes on a disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from partitions.attributes import BootBits
from partitions.booted import Booted, booted_slot, where
from partitions.errors import (
    DeviceOpenError,
    PartitionAmbiguousError,
    PartitionUnknownError,
    SlotBootedError,
)
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from partitions.table import read_table, write_table
from tests.sim.gpt_disk import two_slots

LAYOUT: SlotLayout = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}


@pytest.fixture(params=[512, 4096])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(two_slots(sector_size=request.param, a=BootBits(), b=BootBits()).image)
    return path


def test_the_other_of_the_other_is_the_same() -> None:
    assert (Slot.A.other, Slot.B.other) == (Slot.B, Slot.A)
    assert Slot("a") is Slot.A


def test_a_part_is_found_by_its_label(disk: Path) -> None:
    table = read_table(disk)
    region = resolve(disk, LAYOUT)[Slot.B]["usr"]
    assert (region.path, region.label, region.number) == (disk, "USR-B", 4)
    assert region.offset == table.entries[2].first_lba * table.sector_size
    assert region.size == 4 * table.sector_size
    assert region.partuuid == "00000000-0000-0000-0000-0000000000a4"


def test_a_part_is_found_by_its_partuuid_in_any_case(disk: Path) -> None:
    ref = PartRef.parse("PARTUUID=00000000-0000-0000-0000-0000000000A4")
    layout = {**LAYOUT, Slot.B: {"usr": ref}}
    assert resolve(disk, layout) == resolve(disk, LAYOUT)


def test_a_link_to_the_disk_will_do(disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(disk)
    assert resolve(link, LAYOUT) == resolve(disk, LAYOUT)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("USR-A", PartRef(label="USR-A")),
        ("PARTLABEL=USR-A", PartRef(label="USR-A")),
        ("odd=label", PartRef(label="odd=label")),
        (
            "PARTUUID=7130c94a-213a-4e5a-8e26-6cce9662f132",
            PartRef(partuuid=UUID("7130c94a-213a-4e5a-8e26-6cce9662f132")),
        ),
        ("FILE=/boot/bascule/a/linux", PartRef(file=Path("/boot/bascule/a/linux"))),
    ],
)
def test_a_partition_is_named_as_people_write_it(text: str, ref: PartRef) -> None:
    assert PartRef.parse(text) == ref
    assert PartRef.parse(ref.words) == ref


@pytest.mark.parametrize("text", ["", "PARTLABEL=", "PARTUUID=", "PARTUUID=not-a-guid"])
def test_a_name_of_no_partition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"partition label is empty|hexadecimal"):
        PartRef.parse(text)


def test_a_partition_is_named_in_exactly_one_way() -> None:
    with pytest.raises(ValueError, match="by one of label, PARTUUID and file"):
        PartRef()
    with pytest.raises(ValueError, match="by one of label, PARTUUID and file"):
        PartRef(label="x", partuuid=UUID(int=1))


def test_an_unknown_label_is_refused_and_the_known_are_listed(disk: Path) -> None:
    layout = {**LAYOUT, Slot.B: {"usr": PartRef(label="usr-b")}}
    with pytest.raises(PartitionUnknownError) as caught:
        resolve(disk, layout)
    assert str(caught.value) == (
        f"{disk} has no partition PARTLABEL=usr-b; it has 'ESP', 'USR-A', 'USR-B'"
    )
    assert caught.value.code == "partition-unknown"


def test_a_label_that_two_partitions_bear_is_refused(disk: Path) -> None:
    table = read_table(disk)
    first, second = table.entries[1], table.entries[2]
    twin = replace(second, raw=second.raw[:56] + first.raw[56:])
    write_table(disk, table, table.with_entries([twin]))
    with pytest.raises(PartitionAmbiguousError, match="PARTLABEL=USR-A names partitions 3, 4"):
        resolve(disk, {**LAYOUT, Slot.B: {}})


def test_two_parts_on_one_partition_are_refused(disk: Path) -> None:
    layout = {**LAYOUT, Slot.B: {"usr": PartRef(label="USR-A")}}
    with pytest.raises(
        PartitionAmbiguousError, match="as part usr of slot a and as part usr of slot b"
    ):
        resolve(disk, layout)


def test_a_missing_disk_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DeviceOpenError, match="nowhere cannot be opened: No such file"):
        resolve(tmp_path / "nowhere", LAYOUT)


def test_the_booted_slot_is_known_by_its_partuuid(disk: Path) -> None:
    regions = resolve(disk, LAYOUT)
    booted = Booted(partuuids=frozenset({regions[Slot.B]["usr"].partuuid}))
    assert booted_slot(regions, booted) is Slot.B


def test_the_booted_slot_is_known_by_where_its_bytes_are(disk: Path, tmp_path: Path) -> None:
    regions = resolve(disk, LAYOUT)
    alias = tmp_path / "alias.img"
    os.link(disk, alias)
    other_name = replace(regions[Slot.A]["usr"], path=alias, partuuid="?")
    booted = Booted(places=frozenset({where(other_name)}))
    assert booted_slot(regions, booted) is Slot.A
    with pytest.raises(SlotBootedError, match=r"USR-A .* belongs to the running system"):
        booted.refuse(regions[Slot.A]["usr"], where(regions[Slot.A]["usr"]))
    booted.refuse(regions[Slot.B]["usr"], where(regions[Slot.B]["usr"]))


def test_a_system_on_both_slots_or_on_none_is_on_neither(disk: Path) -> None:
    regions = resolve(disk, LAYOUT)
    both = Booted.of_regions([parts["usr"] for parts in regions.values()])
    assert booted_slot(regions, both) is None
    assert booted_slot(regions, Booted.nothing()) is None


def test_the_machine_that_runs_the_tests_does_not_run_from_this_disk(disk: Path) -> None:
    assert booted_slot(resolve(disk, LAYOUT), Booted.of_mounts()) is None


def test_a_region_whose_disk_is_gone_is_nowhere(disk: Path) -> None:
    region = resolve(disk, LAYOUT)[Slot.A]["usr"]
    disk.unlink()
    with pytest.raises(DeviceOpenError):
        where(region)
