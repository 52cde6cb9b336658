"""Whether this machine has what its settings name: disk, partitions, boot folder, loader.

For `bascule config check`. Nothing is changed, and one fault does not hide the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from partitions.boot import choose_loader, open_boot_control
from partitions.devices import whole_disk
from partitions.errors import (
    BootFolderError,
    BootFolderUnmountedError,
    PartitionAmbiguousError,
    PartitionsError,
    PartitionUnknownError,
)
from partitions.slots import find, resolve
from partitions.table import read_table
from updater.assembly import places, slot_layout

if TYPE_CHECKING:
    from partitions.boot import Places
    from partitions.slots import SlotLayout
    from updater.settings import Settings

ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a look at the machine found.

    Attributes:
        faults: what it lacks, each said once.
        notes: what works, but not as it is written.
    """

    faults: tuple[PartitionsError, ...]
    notes: tuple[str, ...]


def look(settings: Settings, *, root: Path = ROOT) -> Fit:
    """Look for all that `[slots]` name.

    Args:
        settings: the checked settings.
        root: a folder on the running system's own file system, which is no boot folder's.

    Raises:
        SettingsError: a reference is malformed.
    """
    layout = slot_layout(settings)
    where = places(settings, layout)
    faults = [*_of_disk(where.disk, layout)]
    notes: list[str] = []
    try:
        name = choose_loader(settings.slots.boot_control, where).name
        if settings.node.machine == "linux":
            faults += _of_boot_folder(name, where, root)
        loader = open_boot_control(name, where)
        loader.read()
        if settings.slots.tries > loader.max_tries:
            notes.append(
                f"slots.tries is {settings.slots.tries}; {name} counts to {loader.max_tries}, "
                "so many boots a new slot gets"
            )
    except PartitionsError as error:
        faults.append(error)
    once = {str(fault): fault for fault in faults}
    return Fit(faults=tuple(once.values()), notes=tuple(notes))


def _of_disk(disk: Path, layout: SlotLayout) -> Iterator[PartitionsError]:
    """Yield what is wrong with the disk, or with each partition, or with all of them together."""
    try:
        table = read_table(whole_disk(disk).resolve())
    except PartitionsError as error:
        yield error
        return
    alone = True
    for parts in layout.values():
        for ref in parts.values():
            try:
                if ref.file is None:
                    find(table, ref, disk=disk)
            except (PartitionUnknownError, PartitionAmbiguousError) as error:
                alone = False
                yield error
    if alone:
        try:
            resolve(disk, layout)
        except PartitionsError as error:
            yield error


def _of_boot_folder(loader: str, where: Places, root: Path) -> Iterator[PartitionsError]:
    """Yield why boot files, or entries, could not lie where the loader looks for them."""
    folder = where.boot_folder
    files = (ref.file for parts in where.layout.values() for ref in parts.values())
    if loader != "systemd-boot" and not any(
        file is not None and file.is_relative_to(folder) for file in files
    ):
        return
    try:
        if folder.stat().st_dev == root.stat().st_dev:
            yield BootFolderUnmountedError(
                f"slots.boot_folder {folder} is on the running system's own file system"
            )
    except OSError as error:
        yield BootFolderError.because(folder, error)
