"""What a boot loader is asked to put on a new disk, and what it answers.

A loader's file makes bytes: files for the ESP, and what lies outside of any file system. It writes
nothing to the disk; `disk_image.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from partitions.errors import LayoutInvalidError, ToolMissingError
from partitions.gpt import Entry, Table
from partitions.layout import LETTERS, DiskLayout, Partition, Role

KERNEL: Final = "kernel"  # the part that loaders start
INITRD: Final = "initrd"  # the part that they hand it


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A disk that shall boot.

    Attributes:
        layout: what it shall be.
        table: where its partitions lie.
        installed: whether slot A holds a system: then the loader's memory has it confirmed.
        stage: a folder for drafts; empty, and removed afterwards.
    """

    layout: DiskLayout
    table: Table
    installed: bool
    stage: Path

    @property
    def esp(self) -> Entry:
        """Where the ESP lies; `check` has seen that there is one."""
        return self.entry_of(self.layout.esp)

    def entry_of(self, partition: Partition | None) -> Entry:
        """Return where a partition of the layout lies."""
        label = partition.label if partition else ""
        return next(entry for entry in self.table.entries if entry.name == label)

    def slots(self) -> list[BootedBy]:
        """Return what the loader starts in each slot, A first."""
        return [
            BootedBy(
                letter=letter,
                kernel=self.layout.file_name(KERNEL, role) or "",
                initrd=self.layout.file_name(INITRD, role) or "",
                words=self.layout.kernel_words(role),
            )
            for role, letter in LETTERS.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootedBy:
    """What a loader needs to know to start a slot.

    Attributes:
        letter: `a` or `b`.
        kernel: its kernel's absolute path on the ESP.
        initrd: the same of its initrd; empty when it has none.
        words: the kernel's command line.
    """

    letter: str
    kernel: str
    initrd: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What goes on the disk.

    Attributes:
        files: bytes of files on the ESP, by absolute path.
        raw: bytes outside the file systems, by byte of the disk.
        firmware: variables of the machine's firmware, which are not on the disk.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    raw: Mapping[int, bytes] = field(default_factory=dict)
    firmware: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A boot loader that we can install on a disk.

    Attributes:
        boot_control: what the node's settings call its memory.
        prepare: makes what goes on the disk.
        settings: the keys of `[slots]` that this loader needs besides, from the layout.
        tries: the boots of a trial that the settings ask for.
        needs_kernel: whether it starts the file of the part `kernel`.
        counts_in_table: whether its memory are the boot bits of the GPT.
        started_by_efi: whether EFI firmware starts it, so that its variables matter.
        marks_esp: whether it looks for a partition that is legacy BIOS bootable.
    """

    boot_control: str
    prepare: Callable[[Job], Installation]
    settings: Callable[[DiskLayout], Mapping[str, str]] = lambda _: {}
    tries: int = 3
    needs_kernel: bool = True
    counts_in_table: bool = False
    started_by_efi: bool = False
    marks_esp: bool = False


def check(name: str, loader: Loader, layout: DiskLayout) -> None:
    """Refuse a layout that this loader cannot boot from.

    Raises:
        LayoutInvalidError: there is no ESP with vfat, or no kernel on it.
    """
    if loader.needs_kernel and layout.esp is None:
        raise LayoutInvalidError(
            f"{name} needs a partition of role esp with filesystem vfat to lie on"
        )
    if loader.needs_kernel and layout.file_name(KERNEL, Role.SLOT_A) is None:
        raise LayoutInvalidError(
            f"{name} starts the file of part {KERNEL}: the layout has no such `[[file]]`"
        )


def read_program(path: Path, package: str) -> bytes:
    """Return a piece of a boot loader that a package of the distribution brings.

    Raises:
        ToolMissingError: it is not there.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ToolMissingError(
            f"{path} cannot be read ({error.strerror}); Debian's package {package} has it"
        ) from error
