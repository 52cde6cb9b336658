"""The memory of each loader on a fresh machine: slot A confirmed, slot B empty.

What a folder or a few files hold; the GPT and GRUB's environment are made elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from partitions.boot.uboot import UbootEnvironment
from partitions.slots import Slot
from partitions.uboot_env import packed as packed_env
from tests.sim.boot_folder import make_partition
from tests.sim.efi import make_variables

PROGRAM: Final = Path(__file__).with_name("custom-loader.sh")
COPY_BYTES: Final = 4096  # of two; a single one has 512


def uboot(folder: Path, *, copies: int = 1) -> Path:
    """Make U-Boot's environment in one file; returns its fw_env.config."""
    env, config = folder / "uboot.env", folder / "fw_env.config"
    size = COPY_BYTES if copies > 1 else 512
    config.write_text("".join(f"{env} {at * size:#x} {size:#x}\n" for at in range(copies)))
    copy = packed_env((b"board=ours",), size, flag=0 if copies > 1 else None)
    env.write_bytes(copy * copies)
    UbootEnvironment(config).confirm(Slot.A)
    return config


def custom(folder: Path) -> tuple[str, ...]:
    """Make the memory of a program that stands for a loader; returns the command."""
    memory, script = folder / "memory", folder / PROGRAM.name
    shutil.copyfile(PROGRAM, script)
    memory.write_text('order="a b" a_ok=1 a_tries=0 b_ok=0 b_tries=0\n')
    return ("sh", str(script), str(memory))


def systemd_boot(folder: Path) -> Path:
    """Make a boot folder with templates and kernels; returns it."""
    make_partition(folder)
    return folder


def efi(folder: Path) -> Path:
    """Make the firmware's variables; returns their folder."""
    make_variables(folder)
    return folder


PREPARE: Final[Mapping[str, Callable[[Path], object]]] = MappingProxyType(
    {"uboot": uboot, "custom": custom, "systemd-boot": systemd_boot, "efi": efi}
)
"""Makes the memory of a loader in an empty folder, by the loader's name."""
