"""Boot loaders that `disk create` installs: one file each, found here by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from partitions.loaders import efi, gptprio, grub, systemd_boot, uboot
from partitions.loaders.job import Installation, Job, Loader, check

__all__ = ["LOADERS", "Installation", "Job", "Loader", "check"]

LOADERS: Final[Mapping[str, Loader]] = MappingProxyType(
    {
        "efi": efi.LOADER,
        "gptprio": gptprio.LOADER,
        "grub-bios": grub.BIOS,
        "grub-efi": grub.EFI,
        "systemd-boot": systemd_boot.LOADER,
        "uboot": uboot.LOADER,
    }
)
