"""Disks that boot the small guest, made by what `bascule-image disk create` runs; the machines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from partitions.disk_image import FirmwareFile, create_disk
from partitions.disk_settings import slots_settings
from partitions.gpt import Table
from partitions.layout import DiskLayout, parse_layout
from partitions.loaders import LOADERS as INSTALLED
from partitions.slots import Slot
from tests.e2e.boot.archive import CACHE, Kernel, tool
from tests.e2e.boot.judge import Partitions
from tests.e2e.boot.loaders import COMMAND_LINE, Loader
from tests.e2e.boot.machine import OVMF, Drive, Firmware, Hardware
from tests.e2e.boot.shim.pack import shim
from tests.e2e.boot.small_guest import System

LAYOUT: Final = f"""\
seed = "boot"
cmdline = "{COMMAND_LINE}"
boot_folder = "/boot"
partition = [
  {{ label = "bios-boot", role = "bios-boot", size = "1MiB" }},
  {{ label = "esp", role = "esp", size = "48MiB", filesystem = "vfat" }},
  {{ label = "root-a", role = "slot-a", part = "root", size = "64MiB" }},
  {{ label = "root-b", role = "slot-b", part = "root", size = "64MiB" }},
  {{ label = "state", role = "state", size = "24MiB", filesystem = "ext4" }},
]
file = [
  {{ part = "kernel", a = "/bascule/a/linux", b = "/bascule/b/linux" }},
  {{ part = "initrd", a = "/bascule/a/initrd", b = "/bascule/b/initrd" }},
]
"""
SHIM_WORDS: Final = f"{COMMAND_LINE} shim: {COMMAND_LINE}"


def layout() -> DiskLayout:
    """Return what a disk of the small guest is."""
    return parse_layout(LAYOUT.encode(), name="boot tests")


def make_disk(output: Path, loader: Loader, system: System) -> None:
    """Make a disk with this loader, and `system` in slot A, confirmed.

    Beside it, with the ending `.vars`, the variables of a firmware that has some.
    """
    firmware = FirmwareFile(output=variables_of(output))
    create_disk(
        layout(),
        output,
        images=system.parts,
        loader=loader.name,
        firmware=firmware if loader.name == "efi" else None,
        replace=True,
    )
    if loader.firmware is Firmware.EFI and loader.name != "efi":
        shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", variables_of(output))


def variables_of(disk: Path) -> Path:
    """Return where the firmware's variables lie that belong to a disk."""
    return disk.with_suffix(f"{disk.suffix}.vars")


def settings(loader: Loader, *, tries: int = 1) -> str:
    """Return the section `[slots]` of a node with such a disk."""
    told = slots_settings(layout(), INSTALLED[loader.name])
    lines = [
        f"tries = {tries}" if line.startswith("tries = ") else line for line in told.splitlines()
    ]
    return "\n".join(lines) + "\n"


def partitions(table: Table) -> Partitions:
    """Return where the partitions of such a disk are."""
    spans = {
        entry.name: (entry.first_lba * table.sector_size, entry.sectors * table.sector_size)
        for entry in table.entries
    }
    roots = {slot: spans[f"root-{slot.value}"] for slot in Slot}
    return Partitions(esp=spans["esp"], roots=roots)


def machine(loader: Loader, drive: Drive) -> Hardware:
    """Return a machine that boots from such a disk."""
    if loader.firmware is not Firmware.KERNEL:
        return Hardware(
            drives=(drive,),
            firmware=loader.firmware,
            variables=variables_of(drive.path),
            variables_format=drive.format,
            variables_log=drive.write_log and variables_of(drive.write_log),
        )
    kernel = Kernel.fetched()
    initrd = CACHE / "shim"
    if not initrd.exists():
        initrd.write_bytes(shim(kernel))
    return Hardware(drives=(drive,), kernel=kernel.image, initrd=initrd, command_line=SHIM_WORDS)


def convert(source: Path, target: Path) -> None:
    """Make a qcow2 of a raw disk, and of the variables beside it: only those keep snapshots."""
    for old, new in ((source, target), (variables_of(source), variables_of(target))):
        if old.exists():
            command = [tool("qemu-img"), "convert", "-O", "qcow2", str(old), str(new)]
            subprocess.run(command, check=True)


def copy(source: Path, target: Path) -> None:
    """Copy a disk file and the variables beside it."""
    for old, new in ((source, target), (variables_of(source), variables_of(target))):
        if old.exists():
            command = ["cp", "--reflink=auto", "--sparse=always", str(old), str(new)]
            subprocess.run(command, check=True)
