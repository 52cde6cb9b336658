"""A disk laid out as Flatcar's: its numbers, GUIDs, sizes, boot bits, and /usr as btrfs.

Sizes and GUIDs are those of its images; the files are sparse.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from partitions.boot import Places, open_boot_control, power_on
from partitions.booted import Booted, booted_slot
from partitions.errors import SlotBootedError
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from partitions.writer import RegionWriter
from tests.sim.gpt_tools import loop_device, mounted, run, sgdisk_attributes, sgdisk_is_content

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B
SECTOR = 512
USR_A = "7130c94a-213a-4e5a-8e26-6cce9662f132"
USR_B = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c"
USR_TYPE = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
LAYOUT: SlotLayout = {
    A: {"usr": PartRef.parse(f"PARTUUID={USR_A}")},
    B: {"usr": PartRef.parse(f"PARTUUID={USR_B}")},
}
PROVEN, NEVER, TRIAL = 0x0101 << 48, 0, 0x0012 << 48

Rows = list[tuple[int, str, str, int, int]]
"""Number, label, type, first sector and number of sectors of each partition."""

ERAS: dict[str, Rows] = {
    "until 2025": [
        (1, "EFI-SYSTEM", "ef00", 4096, 262_144),
        (2, "BIOS-BOOT", "ef02", 266_240, 4096),
        (3, "USR-A", USR_TYPE, 270_336, 2_097_152),
        (4, "USR-B", USR_TYPE, 2_367_488, 2_097_152),
        (6, "OEM", "8300", 4_464_640, 262_144),
        (7, "OEM-CONFIG", "c95dc21a-df0e-4340-8d7b-26cbfa9a03e0", 4_726_784, 131_072),
        (9, "ROOT", "3884dd41-8582-4404-b9a8-e9b84f2df50e", 4_857_856, 4_427_776),
    ],
    "since 2025": [
        (1, "EFI-SYSTEM", "ef00", 4096, 2_097_152),
        (2, "BIOS-BOOT", "ef02", 2_101_248, 4096),
        (3, "USR-A", USR_TYPE, 2_105_344, 4_194_304),
        (4, "USR-B", USR_TYPE, 6_299_648, 4_194_304),
        (6, "OEM", "8300", 10_493_952, 2_097_152),
        (7, "OEM-CONFIG", "c95dc21a-df0e-4340-8d7b-26cbfa9a03e0", 12_591_104, 131_072),
        (9, "ROOT", "3884dd41-8582-4404-b9a8-e9b84f2df50e", 12_722_176, 3_653_632),
    ],
}


@pytest.fixture(params=ERAS)
def rows(request: pytest.FixtureRequest) -> Rows:
    return ERAS[request.param]


@pytest.fixture
def disk(rows: Rows, tmp_path: Path) -> Path:
    path = tmp_path / "flatcar.img"
    end = rows[-1][3] + rows[-1][4]
    with path.open("wb") as file:
        file.truncate((end + 4096) * SECTOR)
    made = []
    for number, label, kind, first, count in rows:
        made += [f"--new={number}:{first}:{first + count - 1}", f"--typecode={number}:{kind}"]
        made += [f"--change-name={number}:{label}"]
    guids = [f"--partition-guid=3:{USR_A}", f"--partition-guid=4:{USR_B}"]
    run("sgdisk", "--set-alignment=4096", *made, *guids, "--attributes=3:=:0101000000000000", path)
    return path


def attributes(disk: Path) -> list[int]:
    return sgdisk_attributes(disk, [3, 4])


def test_the_slots_are_found_by_their_fixed_guids(disk: Path, rows: Rows) -> None:
    regions = resolve(disk, LAYOUT)
    found = {slot: parts["usr"] for slot, parts in regions.items()}
    assert [(one.number, one.label) for one in found.values()] == [(3, "USR-A"), (4, "USR-B")]
    assert [(one.offset, one.size) for one in found.values()] == [
        (first * SECTOR, count * SECTOR) for _number, _label, _kind, first, count in rows[2:4]
    ]
    assert {uuid.UUID(one.partuuid) for one in found.values()} == {
        uuid.UUID(USR_A),
        uuid.UUID(USR_B),
    }


def test_an_update_leaves_the_bits_that_flatcars_own_engine_leaves(disk: Path) -> None:
    places = Places(disk=disk, layout=LAYOUT)
    control = open_boot_control("gptprio", places, booted=A)
    assert attributes(disk) == [PROVEN, NEVER]
    assert control.read().slots[A].confirmed
    control.disarm(B)
    assert attributes(disk) == [PROVEN, NEVER]
    control.arm(B, tries=1)
    assert attributes(disk) == [PROVEN, TRIAL]
    sgdisk_is_content(disk)
    assert power_on("gptprio", places) is B
    open_boot_control("gptprio", places, booted=B).confirm(B)
    assert attributes(disk) == [PROVEN, 0x0102 << 48]


def test_the_running_system_is_found_when_its_usr_is_btrfs_and_is_never_written(
    disk: Path, tmp_path: Path
) -> None:
    with loop_device(disk) as device:
        regions = resolve(device, LAYOUT)
        usr = regions[B]["usr"].path
        with mounted(usr, tmp_path / "usr", filesystem="btrfs") as folder:
            inside = folder / "lib/bascule"
            inside.mkdir(parents=True)
            for path in (folder, inside):
                assert booted_slot(regions, Booted.of_mounts([path])) is B
            booted = Booted.of_mounts([folder])
        with pytest.raises(SlotBootedError):
            RegionWriter(regions[B]["usr"], booted=booted)
        RegionWriter(regions[A]["usr"], booted=booted).close()
