"""U-Boot's environment, and a program that stands for a loader: slot A confirmed, slot B empty."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from partitions.boot.uboot import UbootEnvironment
from partitions.slots import Slot
from partitions.uboot_env import packed

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

PROGRAM: Final = Path(__file__).with_name("custom-loader.sh")
COPY_BYTES: Final = 4096  # of two; a single one has 512


def quick(names: Iterable[str], *quick_ones: str) -> list[ParameterSet]:
    """Return parameters for all of `names`; those that are not called quick run in `make slow`."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in quick_ones else [slow]) for name in names]


def uboot(folder: Path, *, copies: int = 1) -> Path:
    """Make U-Boot's environment in one file; returns its fw_env.config."""
    env, config = folder / "uboot.env", folder / "fw_env.config"
    size = COPY_BYTES if copies > 1 else 512
    config.write_text("".join(f"{env} {at * size:#x} {size:#x}\n" for at in range(copies)))
    copy = packed((b"board=ours",), size, flag=0 if copies > 1 else None)
    env.write_bytes(copy * copies)
    UbootEnvironment(config).confirm(Slot.A)
    return config


def custom(folder: Path) -> tuple[str, ...]:
    """Make the memory of a program that stands for a loader; returns the command."""
    memory, script = folder / "memory", folder / PROGRAM.name
    shutil.copyfile(PROGRAM, script)
    memory.write_text('order="a b" a_ok=1 a_tries=0 b_ok=0 b_tries=0\n')
    return ("sh", str(script), str(memory))
