"""Which bytes the running system stands on: they are never written, whoever asks.

A partition is recognised by its PARTUUID and by where its bytes really are (medium and offset), so
that another name for it, a loop device or a whole-disk path does not slip through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from partitions.devices import SYS, Place, place_of
from partitions.errors import DeviceOpenError, SlotBootedError
from partitions.in_use import device_of, devices_under
from partitions.slots import Region, Slot

SYSTEM_MOUNTS: Final = (Path("/"), Path("/usr"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """The partitions of the running system.

    Attributes:
        partuuids: their GPT GUIDs, lower case.
        places: where their bytes are.
    """

    partuuids: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()

    @classmethod
    def nothing(cls) -> Self:
        """Say that no system runs from any disk at hand: a disk file that is being made."""
        return cls()

    @classmethod
    def of_regions(cls, regions: Iterable[Region]) -> Self:
        """Name the parts of the booted slot.

        Raises:
            DeviceOpenError: one of them is not there any more.
        """
        given = tuple(regions)
        return cls(
            partuuids=frozenset(region.partuuid.lower() for region in given),
            places=frozenset(where(region) for region in given),
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

    def refuse(self, region: Region, place: Place) -> None:
        """Make sure that `region`, whose bytes are at `place`, is not a part of it.

        Raises:
            SlotBootedError: it is.
        """
        if self.holds(region, place):
            raise SlotBootedError(
                f"partition {region.label} ({region.partuuid}) belongs to the running system"
            )

    def holds(self, region: Region, place: Place) -> bool:
        """Tell whether `region`, whose bytes are at `place`, is a part of the running system."""
        return region.partuuid.lower() in self.partuuids or any(
            mine.overlaps(place) for mine in self.places
        )


def where(region: Region) -> Place:
    """Say where a region's bytes are.

    Raises:
        DeviceOpenError: its path is gone.
    """
    try:
        status = region.path.stat()
    except OSError as error:
        raise DeviceOpenError.because(region.path, error) from error
    return place_of(status, offset=region.offset, size=region.size)


def booted_slot(regions: Mapping[Slot, Mapping[str, Region]], booted: Booted) -> Slot | None:
    """Return the slot that the running system stands on, if it is exactly one of them."""
    hits = [
        slot
        for slot, parts in regions.items()
        if any(booted.holds(region, where(region)) for region in parts.values())
    ]
    return hits[0] if len(hits) == 1 else None
