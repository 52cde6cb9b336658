"""A machine whose root stands on a slot: no boot file is written into that slot's own tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.boot_files import refuse_file
from partitions.booted import Booted
from partitions.disk_image import create_disk
from partitions.errors import BootFolderUnmountedError
from partitions.layout import parse_layout
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from tests.sim.gpt_tools import loop_device, mounted
from updater.machine_linux import LinuxMachine

pytestmark = pytest.mark.e2e

DISK = "".join(
    f'[[partition]]\nlabel = "root-{slot}"\nrole = "slot-{slot}"\npart = "root"\nsize = "16MiB"\n'
    for slot in "ab"
)


def test_a_boot_file_anywhere_in_the_running_slot_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    create_disk(parse_layout(DISK.encode(), name="x"), disk, images={})
    outside, inside = tmp_path / "esp/b/linux", tmp_path / "root/efi/b/linux"
    layout: SlotLayout = {
        Slot.A: {"root": PartRef(label="root-a")},
        Slot.B: {
            "root": PartRef(label="root-b"),
            "linux": PartRef(file=inside),
            "initrd": PartRef(file=outside),
        },
    }
    with loop_device(disk) as device, mounted(Path(f"{device}p1"), tmp_path / "root") as root:
        machine = LinuxMachine(
            disk=device,
            layout=layout,
            machine_id_file=tmp_path / "machine-id",
            alias="",
            reboot_command=["true"],
            boot_folder=Path("/boot"),
            root=root,
        )
        assert machine.boot().slot is Slot.A
        regions = resolve(device, layout)
        booted = Booted.of_regions(regions[Slot.A].values(), apart=machine.apart())
        with pytest.raises(BootFolderUnmountedError, match="root/efi/b/linux"):
            refuse_file(regions[Slot.B]["linux"], booted)
        refuse_file(regions[Slot.B]["initrd"], booted)
