"""Disks that boot the small guest, made by `bascule-image disk create` itself, and the machines."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from partitions.disk_image import create_disk
from partitions.gpt import Table
from partitions.layout import parse_layout
from partitions.slots import Slot
from tests.e2e.boot.archive import CACHE, Kernel, tool
from tests.e2e.boot.judge import Partitions
from tests.e2e.boot.loaders import Loader
from tests.e2e.boot.machine import Drive, Firmware, Hardware
from tests.e2e.boot.shim.pack import shim
from tests.e2e.boot.small_guest import System

LAYOUT: Final = """\
seed = "boot"
cmdline = "console=ttyS0 panic=-1 quiet"
boot_folder = "/boot"
partition = [
  {{ label = "bios-boot", role = "bios-boot", size = "1MiB" }},
  {{ label = "esp", role = "esp", size = "48MiB", filesystem = "vfat" }},
  {{ label = "root-a", role = "slot-a", part = "root", size = "{root_mib}MiB" }},
  {{ label = "root-b", role = "slot-b", part = "root", size = "{root_mib}MiB" }},
  {{ label = "state", role = "state", size = "24MiB", filesystem = "ext4" }},
]
file = [
  {{ part = "kernel", a = "/bascule/a/linux", b = "/bascule/b/linux" }},
  {{ part = "initrd", a = "/bascule/a/initrd", b = "/bascule/b/initrd" }},
]
"""
SHIM_WORDS: Final = "console=ttyS0 quiet panic=-1 gpt shim: console=ttyS0 panic=-1 gpt quiet"


def make_disk(output: Path, loader: Loader, system: System, *, root_mib: int = 64) -> Table:
    """Make a disk with this loader, and `system` in slot A, confirmed."""
    layout = parse_layout(LAYOUT.format(root_mib=root_mib).encode(), name="boot tests")
    return create_disk(layout, output, images=system.parts, loader=loader.installed, replace=True)


def partitions(table: Table) -> Partitions:
    """Return where the partitions of such a disk are."""
    spans = {
        entry.name: (entry.first_lba * table.sector_size, entry.sectors * table.sector_size)
        for entry in table.entries
    }
    return Partitions(esp=spans["esp"], roots={slot: spans[f"root-{slot.value}"] for slot in Slot})


def machine(loader: Loader, drive: Drive, *, variables: Path | None = None) -> Hardware:
    """Return a machine that boots from such a disk."""
    if loader.firmware is not Firmware.KERNEL:
        return Hardware(drives=(drive,), firmware=loader.firmware, variables=variables)
    kernel = Kernel.fetched()
    initrd = CACHE / "shim"
    initrd.write_bytes(shim(kernel.folder / "lib/modules" / kernel.version))
    return Hardware(drives=(drive,), kernel=kernel.image, initrd=initrd, command_line=SHIM_WORDS)


def convert(source: Path, target: Path) -> None:
    """Make a qcow2 of a raw disk: only those keep snapshots."""
    command = [tool("qemu-img"), "convert", "-O", "qcow2", str(source), str(target)]
    subprocess.run(command, check=True)
