"""The boot loaders that are tested: how each is put on a disk, and how its model is asked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from partitions.boot import Places
from partitions.slots import PartRef, Slot, SlotLayout
from tests.e2e.boot.machine import Firmware

LAYOUT: Final[SlotLayout] = MappingProxyType(
    {slot: {"root": PartRef(label=f"root-{slot.value}")} for slot in Slot}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One boot loader.

    Attributes:
        name: of the tests.
        boot_control: as the settings call it.
        installed: as `disk create` calls it.
        firmware: what starts it.
        settings: lines of `[slots]` that it needs.

        kernel_takes_backup: whether the kernel is told to believe the backup of the table (`gpt`
            on its command line) when the primary is damaged.
    """

    name: str
    boot_control: str
    installed: str
    firmware: Firmware
    settings: str = ""
    kernel_takes_backup: bool = True

    def places(self, disk: Path, folder: Path, small: Mapping[str, bytes]) -> Places:
        """Lay out what the loader's model looks at, and return where it is.

        Args:
            disk: a disk file with the table.
            folder: becomes the folder of the loader's partition.
            small: the small files of that partition.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in small.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return Places(disk=disk, layout=LAYOUT, boot_folder=folder, grubenv=folder / "grub/grubenv")


LOADERS: Final[Mapping[str, Loader]] = MappingProxyType(
    {
        "gptprio": Loader(
            name="gptprio", boot_control="gptprio", installed="gptprio", firmware=Firmware.KERNEL
        ),
        "grub": Loader(
            name="grub",
            boot_control="grubenv",
            installed="grub-bios",
            firmware=Firmware.BIOS,
            settings='grubenv = "/boot/grub/grubenv"\n',
        ),
    }
)
