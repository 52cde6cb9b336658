"""What each boot loader of `disk create` needs on this machine, so that a test can skip itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from partitions.loaders import systemd_boot
from tests.sim.gpt_tools import program

_ALL: Final = ("mkfs.vfat", "mkfs.ext4", "mcopy")
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "grub-bios": ("grub-mkimage", "/usr/lib/grub/i386-pc/boot.img"),
    "grub-efi": ("grub-mkimage", "/usr/lib/grub/x86_64-efi/modinfo.sh"),
    "systemd-boot": (str(systemd_boot.PROGRAM),),
    "uboot": ("mkimage",),
    "efi": (),
    "gptprio": (),
}


def need(loader: str) -> None:
    """Skip the test where a loader cannot be installed."""
    for one in (*_ALL, *_NEEDS[loader]):
        if not one.startswith("/"):
            program(one)
        elif not Path(one).exists():
            pytest.skip(f"{one} is not installed; .ci/tools names its package")
