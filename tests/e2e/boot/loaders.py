"""The boot loaders that are tested, and how the model of each is asked about a state of a disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from partitions.boot import Places
from partitions.efi_variables import GLOBAL
from partitions.loaders import LOADERS as INSTALLED
from partitions.slots import PartRef, Slot, SlotLayout
from tests.e2e.boot.machine import Firmware

LAYOUT: Final[SlotLayout] = MappingProxyType(
    {slot: {"root": PartRef(label=f"root-{slot.value}")} for slot in Slot}
)
COMMAND_LINE: Final = "console=ttyS0 panic=-1 gpt quiet"  # gpt: a copy of the table may be torn


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One boot loader.

    Attributes:
        name: as `disk create` calls it.
        firmware: what starts it. GPT attributes have no loader in Debian: there a shim reads
            them, which QEMU starts as a kernel with an initrd.
    """

    name: str
    firmware: Firmware

    @property
    def boot_control(self) -> str:
        """As the settings call it."""
        return INSTALLED[self.name].boot_control

    def places(
        self,
        disk: Path,
        folder: Path,
        small: Mapping[str, bytes],
        variables: Mapping[str, bytes],
    ) -> Places:
        """Lay out what the loader's model looks at, and return where it is.

        Args:
            disk: a disk file with the table.
            folder: becomes the folder of the loader's partition, with more beside it.
            small: the small files of that partition.
            variables: of the firmware, with their attributes.
        """
        shutil.rmtree(folder, ignore_errors=True)
        boot, efivars, config = folder / "boot", folder / "efivars", folder / "fw_env.config"
        for name, content in small.items():
            (boot / name).parent.mkdir(parents=True, exist_ok=True)
            (boot / name).write_bytes(content)
        efivars.mkdir(parents=True)
        for name, content in variables.items():
            (efivars / f"{name}-{GLOBAL}").write_bytes(content)
        config.write_text(f"{boot}/uboot.env 0x0 0x200\n")
        return Places(
            disk=disk,
            layout=LAYOUT,
            grubenv=boot / "grub/grubenv",
            boot_folder=boot,
            uboot_config=config,
            efivars=efivars,
        )


LOADERS: Final[Mapping[str, Loader]] = MappingProxyType(
    {
        name: Loader(name=name, firmware=firmware)
        for name, firmware in {
            "gptprio": Firmware.KERNEL,
            "grub-bios": Firmware.BIOS,
            "uboot": Firmware.UBOOT,
            "systemd-boot": Firmware.EFI,
            "efi": Firmware.EFI,
        }.items()
    }
)
