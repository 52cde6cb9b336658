"""Which bytes the running system stands on: they are never written, whoever asks.

A partition is recognised by its PARTUUID and by where its bytes really are (medium and offset), so
that another name for it, a loop device or a whole-disk path does not slip through. A boot file is
recognised by its name, links in its folder's path resolved, and by the file that it really is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from partitions.devices import SYS, FileIdentity, Place, place_of
from partitions.errors import DeviceOpenError, SlotBootedError
from partitions.in_use import device_of, devices_under
from partitions.slots import Region, Slot

SYSTEM_MOUNTS: Final = (Path("/"), Path("/usr"))
_WHOLE: Final = 2**63 - 1  # bytes of a file, however large it grows


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """The partitions and boot files of the running system.

    Attributes:
        partuuids: GPT GUIDs of the partitions, lower case.
        places: where the bytes of both are.
        files: names of the boot files, as `_name` makes them: they may be lost.
        file_systems: those of the running system itself (st_dev): no boot file belongs there.
    """

    partuuids: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()
    files: frozenset[str] = frozenset()
    file_systems: frozenset[int] = frozenset()

    @classmethod
    def nothing(cls) -> Self:
        """Say that no system runs from any disk at hand: a disk file that is being made."""
        return cls()

    @classmethod
    def of_regions(cls, regions: Iterable[Region], *, folders: Iterable[Path] = ()) -> Self:
        """Name the parts of the booted slot. A boot file of it may be missing.

        Args:
            regions: the parts.
            folders: of the running system; on their file systems no boot file is written.

        Raises:
            DeviceOpenError: a partition is not there any more.
        """
        given = tuple(regions)
        files = [region for region in given if region.room is not None]
        partitions = [region for region in given if region.room is None]
        there = [region for region in files if region.path.exists()]
        return cls(
            partuuids=frozenset(region.partuuid.lower() for region in partitions),
            places=frozenset(where(region) for region in (*partitions, *there)),
            files=frozenset(_name(region.path) for region in files),
            file_systems=frozenset(path.stat().st_dev for path in folders if path.exists()),
        )

    @classmethod
    def of_mounts(cls, mounts: Iterable[Path] = SYSTEM_MOUNTS, *, sys: Path = SYS) -> Self:
        """Find what the given folders are mounted from, through dm-verity and the like.

        Overlays are not followed; name their partitions by PARTUUID, as the kernel's command line
        does.
        """
        numbers = {device_of(path) for path in mounts if path.exists()}
        under = (device for number in numbers for device in devices_under(number, sys=sys))
        return cls(places=frozenset(device.place for device in under))

    def refuse(self, region: Region, place: Place | None) -> None:
        """Make sure that `region` is not a part of it.

        Args:
            region: what shall be written.
            place: where its bytes are; None for a file that is not there yet.

        Raises:
            SlotBootedError: it is.
        """
        if self.holds(region, place):
            which = f" ({region.partuuid})" if region.partuuid else ""
            raise SlotBootedError(f"{region.words}{which} belongs to the running system")

    def holds(self, region: Region, place: Place | None) -> bool:
        """Tell whether `region`, whose bytes are at `place`, is a part of the running system."""
        if region.room is None:
            named = region.partuuid.lower() in self.partuuids
        else:
            named = _name(region.path) in self.files
        return named or (place is not None and any(mine.overlaps(place) for mine in self.places))


def where(region: Region) -> Place:
    """Say where a region's bytes are.

    Raises:
        DeviceOpenError: its path is gone.
    """
    try:
        status = region.path.stat()
    except OSError as error:
        raise DeviceOpenError.because(region.path, error) from error
    if region.room is not None:
        return whole_file(status)
    return place_of(status, offset=region.offset, size=region.size)


def whole_file(status: os.stat_result) -> Place:
    """Say where the bytes of a file are, whatever its names are and however large it grows."""
    medium = FileIdentity(status.st_dev, status.st_ino)
    return Place(medium=medium, first_byte=0, size=_WHOLE)


def _name(path: Path) -> str:
    """Return a boot file's name as FAT sees it, without links in its folder's path."""
    return str(Path(os.path.realpath(path.parent)) / path.name).lower()


def booted_slot(regions: Mapping[Slot, Mapping[str, Region]], booted: Booted) -> Slot | None:
    """Return the slot that the running system stands on, if it is exactly one of them.

    No system stands on its boot files: those are only looked at by the loader.
    """
    hits = [
        slot
        for slot, parts in regions.items()
        if any(
            booted.holds(region, where(region)) for region in parts.values() if region.room is None
        )
    ]
    return hits[0] if len(hits) == 1 else None
