"""Disks of the small guest: ESP, slots, state; `loaders` puts in what a loader needs beside."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from partitions.disk_image import create_disk
from partitions.gpt import Table
from partitions.layout import read_layout
from tests.e2e.boot.archive import tool
from tests.e2e.boot.small_guest import System

LAYOUT: Final = """\
seed = "boot"
partition = [
  {{ label = "esp", role = "esp", size = "48MiB", filesystem = "vfat" }},
  {{ label = "root-a", role = "slot-a", part = "root", size = "{root_mib}MiB" }},
  {{ label = "root-b", role = "slot-b", part = "root", size = "{root_mib}MiB" }},
  {{ label = "state", role = "state", size = "24MiB", filesystem = "ext4" }},
]
"""
FILES: Final = {"kernel": "linux", "initrd": "initrd"}


def make_disk(output: Path, system: System, *, root_mib: int = 64) -> Table:
    """Make a disk with `system` in slot A, confirmed, and boot files of A on the ESP."""
    layout = output.with_suffix(".toml")
    layout.write_text(LAYOUT.format(root_mib=root_mib))
    table = create_disk(
        read_layout(layout), output, images={"root": system.parts["root"]}, replace=True
    )
    esp = table.entries[0].first_lba * table.sector_size
    for slot in "ab":
        run_mtools(
            output, esp, "mmd", *(["::/bascule"] if slot == "a" else []), f"::/bascule/{slot}"
        )
    for part, name in FILES.items():
        run_mtools(output, esp, "mcopy", str(system.parts[part]), f"::/bascule/a/{name}")
    return table


def run_mtools(disk: Path, offset: int, name: str, *arguments: str) -> str:
    """Run one of the mtools on the FAT file system at `offset` of a disk file."""
    command = [tool(name), "-i", f"{disk}@@{offset}", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout
